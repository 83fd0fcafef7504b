"""A GPU that is not there: code for the device cuda runs on the CPU, late and in the order that streams and events give."""
