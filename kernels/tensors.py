"""What every look at a tensor begins with."""

from __future__ import annotations

import torch
from torch import Tensor

from paged_backend.errors import KernelError


def check_tensor(name: str, tensor: object) -> None:
    """Raises KernelError for what is no dense tensor."""
    if not isinstance(tensor, Tensor):
        raise KernelError(f"{name} must be a tensor, got {type(tensor).__name__}.")
    if tensor.layout is not torch.strided:
        raise KernelError(f"{name} must be a dense tensor, got {tensor.layout}.")


def describe(tensor: Tensor) -> str:
    """A tensor's dtype and shape, for an error's text."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
