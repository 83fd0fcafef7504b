"""Reference of `Kernels.pack_experts` and `Kernels.experts`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paged_backend.kernels.quantized_weight import QuantizedWeight
from paged_backend.kernels.reference.linear import ReferenceLinear, linear, pack_linear


@dataclass(frozen=True, slots=True)
class ReferenceExperts:
    """Each expert's two layers in float32.

    Attributes:
        inner: hidden to intermediate, gated.
        outer: back to hidden.
    """

    inner: tuple[ReferenceLinear, ...]
    outer: tuple[ReferenceLinear, ...]

    @property
    def num_experts(self) -> int:
        """See `ExpertWeights`."""
        return len(self.inner)

    @property
    def num_inputs(self) -> int:
        """See `ExpertWeights`."""
        return self.inner[0].num_inputs

    @property
    def num_bytes(self) -> int:
        """See `ExpertWeights`."""
        return sum(layer.num_bytes for layer in (*self.inner, *self.outer))

    @property
    def device(self) -> torch.device:
        """See `TensorExperts`."""
        return self.inner[0].device


def pack_experts(
    inner: Sequence[Tensor | QuantizedWeight], outer: Sequence[Tensor | QuantizedWeight]
) -> ReferenceExperts:
    """See `Kernels.pack_experts`. Float32 weights are shared, others widened."""
    return ReferenceExperts(
        tuple(pack_linear(weight, None, True) for weight in inner),
        tuple(pack_linear(weight, None, False) for weight in outer),
    )


def experts(
    x: Tensor,
    router_logits: Tensor,
    weights: ReferenceExperts,
    num_experts_per_tok: int,
    norm_topk_prob: bool,
    activation: str,
    residual: Tensor | None,
) -> Tensor:
    """See `Kernels.experts`. Waits for the device, to know which experts were chosen."""
    logits = router_logits.float()
    order = logits.sort(dim=-1, descending=True, stable=True).indices[:, :num_experts_per_tok]
    chances = torch.softmax(logits, dim=-1).gather(1, order)
    if norm_topk_prob:
        chances = torch.softmax(logits.gather(1, order), dim=-1)
    out = x.new_zeros(x.shape, dtype=torch.float32)
    for rank in range(num_experts_per_tok):
        part = torch.zeros_like(out)
        for expert in order[:, rank].unique().tolist():
            rows = (order[:, rank] == expert).nonzero()[:, 0]
            wide = linear(x[rows].float(), weights.inner[expert], activation, None)
            part[rows] = linear(wide, weights.outer[expert], None, None)
        out += part * chances[:, rank, None]
    return (out if residual is None else out + residual.float()).to(x.dtype)
