"""Which tokens a draw may give: min_p, top_k and top_p, in vLLM's order, as one lowest probability per row.

Ties at the edge stay in together, so that the kept set does not depend on how a sort orders equals.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paged_backend.sampling_params import SamplingParams

_FIRST_CANDIDATES = 128
"""Most nuclei are smaller than that; finding so few is much cheaper than sorting a vocabulary."""
_GROWTH = 8


def lowest_kept_probability(probabilities: Tensor, params: Sequence[SamplingParams]) -> Tensor | None:
    """The probability that a token needs to be drawn.

    Args:
        probabilities: float64 [R, vocab_size], each row summing to 1.
        params: one for each row.

    Returns:
        float64 [R], 0 where all are kept; None where that is so for all rows.
    """
    vocab_size = probabilities.shape[1]
    filtered = [row for row, p in enumerate(params) if p.min_p > 0.0 or p.top_p < 1.0 or 0 < p.top_k < vocab_size]
    if not filtered:
        return None
    if len(filtered) == len(params):
        return _lowest(probabilities, params)
    lowest = torch.zeros(len(params), dtype=torch.float64)
    lowest[filtered] = _lowest(probabilities[filtered], [params[row] for row in filtered])
    return lowest


def _lowest(probabilities: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    vocab_size = probabilities.shape[1]
    top_k = [p.top_k if 0 < p.top_k < vocab_size else 0 for p in params]
    top_p = [p.top_p for p in params]
    in_nucleus = min(top_p) < 1.0
    num_candidates = max(*top_k, min(_FIRST_CANDIDATES, vocab_size) if in_nucleus else 1)
    candidates = probabilities.topk(num_candidates, dim=-1).values
    lowest = candidates[:, 0] * torch.tensor([p.min_p for p in params], dtype=torch.float64)
    if any(top_k):
        ks = torch.tensor(top_k)
        kth = candidates.gather(1, (ks - 1).clamp_(min=0)[:, None])[:, 0]
        lowest = torch.maximum(lowest, kth.mul_(ks > 0))
    if in_nucleus:
        _raise_to_nucleus(probabilities, candidates, lowest, torch.tensor(top_p, dtype=torch.float64))
    return lowest


def _raise_to_nucleus(probabilities: Tensor, candidates: Tensor, lowest: Tensor, top_p: Tensor) -> None:
    """Raises `lowest` to each row's nucleus: the most likely tokens whose share reaches top_p.

    The share is of what min_p and top_k left. Sums run from the most likely token down, so that they are the
    same whether few candidates were looked at or all.

    Args:
        probabilities: float64 [R, vocab_size].
        candidates: float64 [R, some], the largest of them, falling. More are looked at where these do not reach.
        lowest: float64 [R], what min_p and top_k set, 0 for nothing.
        top_p: float64 [R], 1 for none.
    """
    vocab_size = probabilities.shape[1]
    pending = torch.nonzero(top_p < 1.0)[:, 0]
    candidates = candidates[pending]
    while True:
        num_candidates = candidates.shape[1]
        sums = candidates.cumsum(dim=-1)
        before = lowest[pending]
        num_left = (candidates >= before[:, None]).sum(dim=-1)
        mass = torch.where(before > 0.0, sums.gather(1, num_left[:, None] - 1)[:, 0], 1.0)
        wanted = top_p[pending] * mass
        # The first candidate at which the sum reaches what is wanted; rounding may keep all from it.
        edge = (sums < wanted[:, None]).sum(dim=-1).clamp_(max=num_candidates - 1)
        reached = torch.maximum(before, candidates.gather(1, edge[:, None])[:, 0])
        if num_candidates == vocab_size:
            lowest[pending] = reached
            return
        # Without a bound from min_p or top_k the mass is known; with one, all within it must have been seen.
        done = torch.where(before > 0.0, num_left < num_candidates, sums[:, -1] >= wanted)
        lowest[pending[done]] = reached[done]
        pending = pending[~done]
        if not len(pending):
            return
        candidates = probabilities[pending].topk(min(num_candidates * _GROWTH, vocab_size), dim=-1).values
