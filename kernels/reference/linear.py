"""Reference of `Kernels.linear`."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See `Kernels.linear`.

    The library's matrix product may sum in another order for another number of rows, so the last bits of a
    row can depend on how many rows came with it.
    """
    wide_bias = None if bias is None else bias.float()
    return functional.linear(x.float(), weight.float(), wide_bias).to(x.dtype)
