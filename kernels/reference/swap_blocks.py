"""Reference of `Kernels.swap_blocks`."""

from __future__ import annotations

from torch import Tensor


def swap_blocks(storage: Tensor, slots: Tensor, pairs: Tensor, inwards: bool) -> None:
    """See `Kernels.swap_blocks`. Looks at the pairs on the host."""
    for block, slot in pairs.tolist():
        if inwards:
            storage[:, :, block].copy_(slots[slot])
        else:
            slots[slot].copy_(storage[:, :, block])
