"""Reference of `Kernels.rotary`."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """See `Kernels.rotary`."""
    # One head dimension of size 1, so that a token's angles serve all of its heads.
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return _turn(query, cos, sin), _turn(key, cos, sin)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    num_rotated = cos.shape[-1]
    wide = x[..., :num_rotated].float()
    low, high = wide.chunk(2, dim=-1)
    turned = (wide * cos + torch.cat((-high, low), dim=-1) * sin).to(x.dtype)
    if num_rotated == x.shape[-1]:
        return turned
    return torch.cat((turned, x[..., num_rotated:]), dim=-1)
