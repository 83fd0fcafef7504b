"""A GPU that is not there: code for the device cuda runs on the CPU, late, as streams and events have it."""
