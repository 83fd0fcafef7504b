"""What the operations should give, in float64 and plainly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu.cases import AttentionCase, stored_heads


def attention(case: AttentionCase) -> Tensor:
    """[T, Hq * D]."""
    inputs, cache, options = case.inputs, case.cache, case.options
    bounds, outs = inputs.query_start.tolist(), []
    for index, context in enumerate(inputs.context_lens.tolist()):
        place = torch.arange(context, device=case.query.device)
        slots = inputs.block_tables[index].long()[place // cache.block_size] * cache.block_size
        keys, values = stored_heads(cache, slots + place % cache.block_size)
        rows = case.query[bounds[index] : bounds[index + 1]].double().unflatten(1, (-1, cache.head_size))
        group = rows.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        scores = torch.einsum("rhd,chd->hrc", rows, keys) * options["scale"]
        if cap := options.get("soft_cap"):
            scores = cap * torch.tanh(scores / cap)
        position = torch.arange(context - len(rows), context, device=case.query.device).unsqueeze(1)
        seen = place <= position
        if window := options.get("sliding_window"):
            seen = seen & (place > position - window)
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        outs.append(torch.einsum("hrc,chd->rhd", weights, values).flatten(1))
    return torch.cat(outs)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Over the last dimension."""
    wide = x.double()
    return wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.double()


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Over the last dimension."""
    return functional.layer_norm(x.double(), x.shape[-1:], weight.double(), bias.double(), eps)


def turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of [T, heads, D] by each token's angles [T, D]."""
    low, high = heads.chunk(2, -1)
    return heads * cos.double().unsqueeze(1) + torch.cat((-high, low), -1) * sin.double().unsqueeze(1)


def gated(sums: Tensor) -> Tensor:
    """silu(gate) * up, of rows that hold all gates and then all ups."""
    gate, up = sums.chunk(2, -1)
    return functional.silu(gate) * up


def experts(x: Tensor, logits: Tensor, inner: Sequence[Tensor], outer: Sequence[Tensor], top_k: int) -> Tensor:
    """A mixture of gated experts whose parts of a row sum to 1; weights in float64."""
    chosen = logits.double().sort(dim=1, descending=True, stable=True)
    parts = chosen.values[:, :top_k].softmax(1)
    every = torch.stack([gated(x.double() @ into.T) @ out.T for into, out in zip(inner, outer, strict=True)], 1)
    picked = every.gather(1, chosen.indices[:, :top_k, None].expand(-1, -1, x.shape[1]))
    return (picked * parts.unsqueeze(-1)).sum(1)


def draw_distance(logits: Tensor, token: int, point: float, temperature: float, top_k: int) -> float:
    """How far a draw's point is outside of its token's part of the distribution; 0.0 inside, infinity for a token that
    a filter leaves out, or, at temperature 0, for any but the first of the largest."""
    wide = logits.double()
    if temperature == 0.0:
        return 0.0 if token == int(wide.argmax()) else float("inf")
    if top_k:
        wide = wide.masked_fill(wide < wide.topk(top_k).values[-1], -torch.inf)
    chances = (wide / temperature).softmax(0)
    end = float(chances[: token + 1].sum())
    begin = end - float(chances[token])
    return max(begin - point, point - end, 0.0) if chances[token] > 0 else float("inf")
