"""The implementations of `Kernels` under test: the reference in each activation dtype, C++ in each instruction set."""

from __future__ import annotations

import pytest
import torch

from paged_backend.kernels.cpu import _cpu
from paged_backend.kernels.cpu.kernels import CpuKernels
from paged_backend.kernels.interface import Kernels
from paged_backend.kernels.reference.kernels import ReferenceKernels
from paged_backend.kernels.registry import select_kernels

IMPLEMENTATIONS: dict[str, tuple[Kernels, torch.dtype]] = {
    "reference": (ReferenceKernels(), torch.float32),
    "reference bfloat16": (ReferenceKernels(torch.bfloat16), torch.bfloat16),
    "reference float16": (ReferenceKernels(torch.float16), torch.float16),
    "auto": (select_kernels("auto", num_threads=2), torch.float32),
    **{name: (CpuKernels(2, name), torch.float32) for name in _cpu.available_instruction_sets()[1:]},
}
"""Kernels, and what they hold activations in."""

implementations = pytest.mark.parametrize(("kernels", "dtype"), IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS.keys())
