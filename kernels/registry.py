"""Chooses an implementation; what was chosen, and why not another, is in its report."""

from __future__ import annotations

import torch

from paged_backend.errors import ConfigError
from paged_backend.kernels.cores import usable_cores
from paged_backend.kernels.interface import Kernels
from paged_backend.kernels.reference.kernels import ReferenceKernels

BACKENDS = ("auto", "reference", "cpu", "triton")
"""What `select_kernels` takes as backend."""


def select_kernels(
    backend: str = "auto",
    device: str | torch.device = "cpu",
    *,
    num_threads: int | None = None,
    dtype: torch.dtype = torch.float32,
    batch_invariant: bool = False,
) -> Kernels:
    """The kernels of a device.

    Args:
        backend: "reference" (plain torch), "cpu" (C++), "triton", or "auto": on a GPU triton, else the fastest that
            serves the device and can be loaded.
        device: where the tensors will be.
        num_threads: threads of the C++ kernels; None means as many as `usable_cores` counts.
        dtype: what activations are held in. C++ has float32 alone.
        batch_invariant: of Triton's kernels, see `TritonKernels`. C++'s always are, plain torch never.

    Raises:
        ConfigError: the backend is unknown, does not serve the device, or was asked for and cannot be loaded.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"kernel_backend must be one of {', '.join(BACKENDS)}, got {backend!r}.")
    if num_threads is not None and num_threads < 1:
        raise ConfigError(f"num_threads must be at least 1, got {num_threads!r}.")
    device = torch.device(device)
    if backend == "reference":
        return ReferenceKernels(dtype, reason="kernel_backend is reference.")
    if backend == "triton" or (backend == "auto" and device.type == "cuda"):
        return _triton_kernels(device, dtype, batch_invariant)
    if device.type != "cpu":
        if backend == "cpu":
            raise ConfigError(
                f"kernel_backend cpu serves the device cpu only, got {device.type!r}: choose reference or auto."
            )
        return ReferenceKernels(dtype, reason=f"No other kernels serve the device {device.type}.")
    return _cpu_kernels(backend, num_threads or usable_cores())


def _triton_kernels(device: torch.device, dtype: torch.dtype, batch_invariant: bool) -> Kernels:
    try:
        # Lazy: only GPUs need Triton.
        from paged_backend.kernels.triton.kernels import TritonKernels
    except ImportError as error:
        raise ConfigError(
            f"kernel_backend triton needs Triton, and it cannot be loaded ({error}). Install it with pip install "
            "'paged-backend[gpu]' (builds of torch for NVIDIA GPUs bring it), or choose another kernel_backend."
        ) from None
    return TritonKernels(device, dtype, batch_invariant=batch_invariant)


def _cpu_kernels(backend: str, num_threads: int) -> Kernels:
    try:
        # Lazy: this file must load where the C++ module does not.
        from paged_backend.kernels.cpu.kernels import CpuKernels
    except ImportError as error:
        if backend == "cpu":
            raise ConfigError(
                f"kernel_backend cpu needs the C++ module, and it cannot be loaded ({error}). Install a "
                "wheel of this platform or run `make install` with a C++17 compiler, or choose "
                "kernel_backend reference."
            ) from None
        return ReferenceKernels(reason=f"The C++ module cannot be loaded: {error}.")
    return CpuKernels(num_threads)
