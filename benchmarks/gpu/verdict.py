"""What a check has found."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDINGS = 8
"""Of the result's dtype that a number may be off by, relative to the largest number of its row."""
_FLOAT32_SLACK = 2e-5
_OF_CACHE = {"int8": 0.51 / 127, "fp8_e4m3": 2.0**-4}


@dataclass(frozen=True)
class Verdict:
    """How one check of one operation went.

    Attributes:
        operation: a name of `interface.OPERATIONS`.
        case: what of it.
        error: the largest, relative to the largest number of its row (of a head, for what is stored).
        allowed: what it may be.
        same_bits: whether rows have the bits that they have alone; None where nobody promises it.
        problem: why there is no result, if there is none: what was raised, or what the card does not have.
        served: False where the card, not the kernel, is the reason.
    """

    operation: str
    case: str
    error: float | None = None
    allowed: float | None = None
    same_bits: bool | None = None
    problem: str | None = None
    served: bool = True

    @property
    def good(self) -> bool:
        """Whether all that is promised holds."""
        if not self.served:
            return True
        if self.problem is not None or self.error is None or self.allowed is None:
            return False
        return self.error <= self.allowed and self.same_bits is not False


def allowed_error(dtype: torch.dtype, cache_dtype: str | None = None) -> float:
    """What a result of a dtype may be off by, or what is stored in a cache of 8 bits."""
    rounding = ROUNDINGS * torch.finfo(dtype).eps / 2 + _FLOAT32_SLACK
    return rounding + _OF_CACHE.get(cache_dtype or "", 0.0)


def relative_error(out: Tensor, exact: Tensor) -> float:
    """The largest error over the largest number of its row; infinity where something is not a number."""
    if out.shape != exact.shape or not bool(out.isfinite().all()):
        return float("inf")
    largest = exact.abs().amax(-1, keepdim=True).clamp_min(1e-30)
    return float(((out.double() - exact).abs() / largest).max())
