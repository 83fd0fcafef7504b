"""Reference of `Kernels.rms_norm`."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `Kernels.rms_norm`."""
    return normed(x.float(), weight, eps).to(x.dtype)


def normed(wide: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The norm over the last dimension, float32 in and out."""
    return wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps) * weight
