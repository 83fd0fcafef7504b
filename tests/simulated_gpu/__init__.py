"""A GPU that is not there: code for the device cuda runs late, in the order that streams and events give, on the CPU."""
