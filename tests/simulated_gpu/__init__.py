"""A GPU that is not there: what is done on the device cuda is done late, in the order of streams and events."""
