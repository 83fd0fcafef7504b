"""Rounding errors, from which the tolerances of the kernel tests are derived."""

from __future__ import annotations

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def unit(dtype: torch.dtype) -> float:
    """Largest relative error of one rounding to the nearest number of this dtype."""
    return torch.finfo(dtype).eps / 2


def assert_within(actual: Tensor, exact: Tensor, float32_error: Tensor | float) -> None:
    """Asserts |actual - exact| <= float32_error, plus one rounding to actual's dtype.

    Args:
        actual: what a kernel gave.
        exact: float64, the same shape.
        float32_error: bound of the absolute error of the float32 computation; broadcast to exact.
    """
    dtype = actual.dtype
    # Below the normal numbers the error of a rounding is absolute.
    tiny = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    allowed = float32_error + unit(dtype) * (exact.abs() + float32_error) + tiny
    excess = ((actual.double() - exact).abs() - allowed).max().item() if exact.numel() else 0.0
    assert excess <= 0, f"off by {excess:.3e} more than its bound"
