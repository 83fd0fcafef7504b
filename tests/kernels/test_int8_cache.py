"""Attention over a cache in 8 bits: how far it can be from attention over what was stored."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from paged_backend.kernels.interface import Kernels
from tests.kernels.implementations import implementations
from tests.kernels.rounding import unit
from tests.kernels.step_case import make_cache, make_inputs

NUM_HEADS, NUM_KV_HEADS = 4, 2


def exact_attention(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """A whole prompt's causal attention, float64 [T, Hq, D], and the same of the values' magnitudes."""
    group = NUM_HEADS // NUM_KV_HEADS
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    scores = torch.einsum("rhd,chd->hrc", query, keys) * scale
    seen = torch.ones(len(query), len(query), dtype=torch.bool).tril()
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hrc,chd->rhd", weights, values), torch.einsum("hrc,chd->rhd", weights, values.abs())


@implementations
@pytest.mark.parametrize("head_size", [8, 64])
@pytest.mark.parametrize("outlier", [1.0, 30.0])
def test_error_bound(kernels: Kernels, dtype: torch.dtype, head_size: int, outlier: float) -> None:
    """A number in 8 bits is off by half a step at most, with a step of the head's largest number / 127.

    So a score is off by e <= scale * |q|_1 * half a step of the keys, a weight changes by a factor within exp(-2e) ..
    exp(2e), and the result by half a step of the values and (exp(2e) - 1) times the weighted magnitude of the values.
    """
    num_rows, scale = 37, head_size**-0.5
    inputs = make_inputs([num_rows], num_blocks=12)
    cache = make_cache("int8", 12, NUM_KV_HEADS, head_size=head_size)
    heads = torch.randn(num_rows, NUM_HEADS + 2 * NUM_KV_HEADS, head_size)
    heads[..., 3] *= outlier  # a channel that takes the whole range, as keys of real models have
    heads[:, :NUM_HEADS] *= 0.3
    qkv = heads.flatten(1).to(dtype)
    query, keys, values = (
        qkv.double().view(num_rows, -1, head_size).split([NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS], dim=1)
    )
    turned = kernels.qkv_to_cache(qkv, cache, inputs, num_heads=NUM_HEADS)
    out = kernels.paged_attention(turned, cache, inputs, scale=scale).double().view(num_rows, NUM_HEADS, head_size)
    exact, magnitude = exact_attention(query, keys, values, scale)
    slack = 1 + 300 * unit(torch.float32)
    key_step, value_step = (heads.abs().amax() / 254 * slack for heads in (keys, values))
    score_error = scale * query.abs().sum(-1, keepdim=True) * key_step
    bound = value_step + torch.expm1(2 * score_error) * magnitude
    excess = (out - exact).abs() - bound * (1 + 2 * unit(dtype)) - unit(dtype) * exact.abs() - 1e-5 * magnitude
    assert excess.max() <= 0
    # The bound is for the worst case; what is really lost is far less.
    assert (out - exact).square().mean().sqrt() < 0.05 * outlier * exact.square().mean().sqrt()
    assert (out - exact).abs().max() > 0
