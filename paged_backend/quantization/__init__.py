"""Weights of linear layers in few bits: from a float tensor to a `QuantizedWeight`, one file per format."""
