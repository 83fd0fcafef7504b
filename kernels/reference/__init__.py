"""Each operation in plain torch: the executable truth that the other implementations are tested against.

Runs on any device that torch has. `kernels.ReferenceKernels` checks arguments (`checks.py`) and computes, with one file
for each operation that takes more than a line.
"""
