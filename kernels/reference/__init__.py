"""Each operation in plain torch: the executable truth that the other implementations are tested against.

Runs on any device that torch has. One file per operation; each is a function with the signature of the method
of the same name in `interface.Kernels`. Arguments are checked before they come here (`checks.py`).
"""
