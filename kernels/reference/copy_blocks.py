"""Reference of `Kernels.copy_blocks`."""

from __future__ import annotations

from torch import Tensor


def copy_blocks(storage: Tensor, pairs: Tensor) -> None:
    """See `Kernels.copy_blocks`."""
    if pairs.shape[0] == 0:
        return
    # index_select makes a copy of the sources first, so a block may be both source and destination.
    storage.index_copy_(2, pairs[:, 1], storage.index_select(2, pairs[:, 0]))
