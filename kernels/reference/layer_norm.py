"""Reference of `Kernels.layer_norm`."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """See `Kernels.layer_norm`."""
    return functional.layer_norm(x.float(), (x.shape[-1],), weight, bias, eps).to(x.dtype)
