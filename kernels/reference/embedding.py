"""Reference of `Kernels.embedding`."""

from __future__ import annotations

import torch
from torch import Tensor


def embedding(table: Tensor, indices: Tensor, add: Tensor | None, dtype: torch.dtype) -> Tensor:
    """See `Kernels.embedding`."""
    out = table.index_select(0, indices).float()
    return (out if add is None else out + add.float()).to(dtype)
