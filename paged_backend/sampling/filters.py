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
    with_min_p = [row for row, p in enumerate(params) if p.min_p > 0.0]
    with_top_k = [row for row, p in enumerate(params) if 0 < p.top_k < vocab_size]
    with_top_p = [row for row, p in enumerate(params) if p.top_p < 1.0]
    if not (with_min_p or with_top_k or with_top_p):
        return None
    lowest = torch.zeros(len(params), dtype=torch.float64)
    if with_min_p:
        share = torch.tensor([params[row].min_p for row in with_min_p], dtype=torch.float64)
        lowest[with_min_p] = share * probabilities[with_min_p].amax(dim=-1)
    if with_top_k:
        ks = torch.tensor([params[row].top_k for row in with_top_k])
        largest = probabilities[with_top_k].topk(int(ks.max()), dim=-1).values
        kth = largest.gather(1, ks[:, None] - 1)[:, 0]
        lowest[with_top_k] = torch.maximum(lowest[with_top_k], kth)
    if with_top_p:
        _raise_to_nucleus(probabilities, lowest, [params[row].top_p for row in with_top_p], with_top_p)
    return lowest


def _raise_to_nucleus(probabilities: Tensor, lowest: Tensor, top_p: Sequence[float], rows: Sequence[int]) -> None:
    """Raises `lowest` of some rows to their nucleus: the most likely tokens whose share reaches top_p.

    The share is of what min_p and top_k left. Sums run from the most likely token down, so that they are the
    same whether few candidates were looked at or all.
    """
    vocab_size = probabilities.shape[1]
    num_candidates = min(_FIRST_CANDIDATES, vocab_size)
    pending = torch.tensor(rows)
    shares = torch.tensor(top_p, dtype=torch.float64)
    while len(pending):
        candidates = probabilities[pending].topk(num_candidates, dim=-1).values
        sums = candidates.cumsum(dim=-1)
        before = lowest[pending]
        num_left = (candidates >= before[:, None]).sum(dim=-1)
        mass = torch.where(before > 0.0, sums.gather(1, num_left[:, None] - 1)[:, 0], 1.0)
        wanted = shares * mass
        # The first candidate at which the sum reaches what is wanted; rounding may keep all from it.
        edge = (sums < wanted[:, None]).sum(dim=-1).clamp(max=num_candidates - 1)
        all_seen = num_candidates == vocab_size
        done = (num_left < num_candidates) | ((before == 0.0) & (sums[:, -1] >= wanted)) | all_seen
        reached = candidates.gather(1, edge[:, None])[:, 0]
        lowest[pending[done]] = torch.maximum(before, reached)[done]
        pending, shares = pending[~done], shares[~done]
        num_candidates = min(num_candidates * _GROWTH, vocab_size)
