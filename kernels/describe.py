"""Tensors in the text of errors."""

from __future__ import annotations

from torch import Tensor


def describe(tensor: Tensor) -> str:
    """A tensor's dtype and shape."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
