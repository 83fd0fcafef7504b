"""Reference of `Kernels.soft_cap`."""

from __future__ import annotations

import torch
from torch import Tensor


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """See `Kernels.soft_cap`."""
    return (torch.tanh(x.float() / cap) * cap).to(x.dtype)
