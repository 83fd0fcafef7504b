"""Reference of `Kernels.select_rows`."""

from __future__ import annotations

import torch
from torch import Tensor


def select_rows(x: Tensor, indices: Tensor) -> Tensor:
    """See `Kernels.select_rows`."""
    return torch.index_select(x, 0, indices)
