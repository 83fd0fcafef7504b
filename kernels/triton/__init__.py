"""The kernels of NVIDIA GPUs, in Triton.

One file for each operation: its `@triton.jit` kernels, the table of configurations that they run with, the function
that launches them on torch tensors, and `aot_cases`, what has to be compiled ahead of time to know that every
configuration compiles without spilling (`aot`). `kernels.TritonKernels` has them all behind `interface.Kernels`.

A launch reads no value of a device's tensor and its grid depends on shapes alone, so that it can be captured in a CUDA
graph. With TRITON_INTERPRET=1 in the environment before the first import the kernels run on the CPU, slowly: for
tests. bfloat16 is computed wrongly there, by Triton itself.
"""
