"""Reference of `Kernels.layer_norm`."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, residual: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See `Kernels.layer_norm`."""
    hidden = x if residual is None else x + residual
    return functional.layer_norm(hidden.float(), (x.shape[-1],), weight, bias, eps).to(x.dtype), hidden
