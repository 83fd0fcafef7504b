"""Reference of `Kernels.pack_linear` and `Kernels.linear`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from paged_backend.kernels.quantized_weight import QuantizedWeight
from paged_backend.kernels.reference.activation import ACTIVATIONS


@dataclass(frozen=True, slots=True)
class ReferenceLinear:
    """A linear layer in float32.

    Attributes:
        weight: float32 [N, K].
        bias: float32 [N], or None.
        gated: the first half of the rows are gates, the second ups.
    """

    weight: Tensor
    bias: Tensor | None
    gated: bool

    @property
    def num_inputs(self) -> int:
        """See `LinearWeight`."""
        return self.weight.shape[1]

    @property
    def num_outputs(self) -> int:
        """See `LinearWeight`."""
        return self.weight.shape[0] // 2 if self.gated else self.weight.shape[0]

    @property
    def num_bytes(self) -> int:
        """See `LinearWeight`."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    @property
    def device(self) -> torch.device:
        """See `TensorLinear`."""
        return self.weight.device


def pack_linear(weight: Tensor | QuantizedWeight, bias: Tensor | None, gated: bool) -> ReferenceLinear:
    """See `Kernels.pack_linear`. A float32 weight is shared, another one widened."""
    wide = weight.dequantized() if isinstance(weight, QuantizedWeight) else weight.float()
    return ReferenceLinear(wide, bias, gated)


def linear(x: Tensor, weight: ReferenceLinear, activation: str | None, residual: Tensor | None) -> Tensor:
    """See `Kernels.linear`.

    The library's matrix product may sum in another order for another number of rows, so the last bits of a
    row can depend on how many rows came with it.
    """
    out = functional.linear(x.float(), weight.weight, weight.bias)
    if weight.gated:
        gate, up = out.chunk(2, dim=-1)
        out = (gate if activation is None else ACTIVATIONS[activation](gate)) * up
    elif activation is not None:
        out = ACTIVATIONS[activation](out)
    if residual is not None:
        out = out + residual.float()
    return out.to(x.dtype)
