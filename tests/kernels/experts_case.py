"""Mixtures of experts in float64, token by token, for the tests of each implementation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paged_backend.kernels.quantized_weight import QuantizedWeight
from tests.kernels.linear_case import exact_weight, make_weight
from tests.kernels.rounding import unit

Weights = list[Tensor | QuantizedWeight]


def make_experts(name: str, num_experts: int, hidden: int, intermediate: int) -> tuple[Weights, Weights]:
    """Random inner and outer weights; name as of `linear_case.make_weight`."""
    inner = [make_weight(name, 2 * intermediate, hidden) for _ in range(num_experts)]
    return inner, [make_weight(name, hidden, intermediate) for _ in range(num_experts)]


@dataclass(frozen=True)
class ExactExperts:
    """What comes out, float64 [T, H], and a bound of a float32 computation's error that rounds parts to a dtype."""

    out: Tensor
    error: Tensor


def exact_experts(
    x: Tensor,
    logits: Tensor,
    inner: Sequence[Tensor | QuantizedWeight],
    outer: Sequence[Tensor | QuantizedWeight],
    num_experts_per_tok: int,
    norm_topk_prob: bool,
    residual: Tensor,
) -> ExactExperts:
    """Of silu. Written out as the formula is: a token, its experts, one after another."""
    gates, ups = zip(*(exact_weight(weight).chunk(2) for weight in inner), strict=True)
    backs = [exact_weight(weight) for weight in outer]
    out, error = residual.double().clone(), residual.double().abs() * unit(torch.float32)
    chances = torch.softmax(logits.double(), dim=-1)
    for token, row in enumerate(x.double()):
        order = sorted(range(len(backs)), key=lambda e: (-logits[token, e].item(), e))[:num_experts_per_tok]
        whole = sum(chances[token, e] for e in order) if norm_topk_prob else torch.tensor(1.0)
        for e in order:
            gate, up = gates[e] @ row, ups[e] @ row
            wide = gate * torch.sigmoid(gate) * up
            part = chances[token, e] / whole * (backs[e] @ wide)
            # Sums of products are off by a rounding for each, as are silu and the rounding of what is between.
            one = (x.shape[1] + len(wide) + 40) * unit(torch.float32) + 4 * unit(x.dtype)
            size = (gates[e].abs() @ row.abs()) * (ups[e].abs() @ row.abs() + 1)
            out[token] += part
            error[token] += chances[token, e] / whole * (backs[e].abs() @ size) * one
    return ExactExperts(out, error)
