"""`Kernels.sample` in plain torch, a row at a time, all sums in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from paged_backend.kernels.reference.random_bits import uniform
from paged_backend.kernels.sampling_batch import LogitChanges, SampledBatch, SamplingBatch, check_sampling


def sample(logits: Tensor, batch: SamplingBatch) -> SampledBatch:
    """See `Kernels.sample`. On any device."""
    check_sampling(logits, batch)
    sampled = SampledBatch([])
    for row in range(len(batch.seeds)):
        raw = logits[row]
        changes = batch.changes.get(row)
        changed = raw if changes is None else change_logits(raw, changes)
        num_samples = len(batch.seeds[row])
        tokens = _draw(changed, batch, row) if _are_numbers(raw) and _are_numbers(changed) else [-1] * num_samples
        sampled.token_ids += tokens
        if batch.num_logprobs:
            _describe(raw, tokens, row, batch.num_logprobs[row], sampled)
    return sampled


def change_logits(logits: Tensor, changes: LogitChanges) -> Tensor:
    """What `LogitChanges` says, in float32.

    Args:
        logits: float32 [V].

    Returns:
        A new tensor like it.
    """
    result = logits.clone()
    if changes.allowed_token_ids is not None:
        allowed = _indices(changes.allowed_token_ids, logits)
        result.fill_(-torch.inf)
        result[allowed] = logits[allowed]
    result[_indices(changes.suppressed_token_ids, logits)] = -torch.inf
    for token, bias in changes.logit_bias.items():
        result[token] += bias
    if changes.repetition_penalty != 1.0:
        seen = _indices((*changes.prompt_token_ids, *changes.output_token_ids), logits).unique()
        values = result[seen]
        penalty = torch.tensor(changes.repetition_penalty, dtype=torch.float32, device=logits.device)
        result[seen] = torch.where(values > 0, values / penalty, values * penalty)
    tokens, counts = _indices(changes.output_token_ids, logits).unique(return_counts=True)
    result[tokens] -= changes.frequency_penalty * counts.float()
    result[tokens] -= changes.presence_penalty
    return result


def _indices(token_ids: object, like: Tensor) -> Tensor:
    return torch.tensor(token_ids, dtype=torch.int64, device=like.device)


def _are_numbers(logits: Tensor) -> bool:
    """No NaN, no +inf, and something above -inf: NaN and +inf win every comparison."""
    return math.isfinite(float(logits.max()))


def _draw(logits: Tensor, batch: SamplingBatch, row: int) -> list[int]:
    temperature = batch.temperatures[row]
    if temperature == 0.0:
        first = int((logits == logits.max()).nonzero()[0, 0])
        return [first] * len(batch.seeds[row])
    # Shifted first: a temperature near 0 then gives 0 and -inf, never a difference of infinities.
    weights = (logits.double() - float(logits.max())).div_(temperature).exp_()
    lowest = _lowest_kept_logit(logits, weights, batch.top_k[row], batch.top_p[row], batch.min_p[row])
    sums = weights.masked_fill_(logits < lowest, 0.0).cumsum(dim=0)
    points = [uniform(seed, batch.positions[row]) for seed in batch.seeds[row]]
    # The first token whose sum exceeds the point: never one of weight 0; and as the points are below 1 by at least
    # 2 ** -53, their product with the total is below the total, so there always is one.
    total = sums[-1]
    drawn: list[int] = torch.searchsorted(
        sums, torch.tensor(points, dtype=torch.float64, device=logits.device) * total, right=True
    ).tolist()
    return drawn


def _lowest_kept_logit(logits: Tensor, weights: Tensor, top_k: int, top_p: float, min_p: float) -> float:
    """The logit that a token needs to be drawn: min_p, then top_k, then top_p of what they left.

    Args:
        logits: float32 [V].
        weights: float64 [V], the most likely token's being 1.
    """
    if min_p == 0.0 and top_p == 1.0 and not 0 < top_k < len(logits):
        return -math.inf
    falling, order = logits.sort(descending=True)
    weights = weights[order]
    num_left = int((weights >= min_p).sum())
    if 0 < top_k < num_left:
        num_left = int((falling >= falling[top_k - 1]).sum())  # equals of the last one stay in with it
    if top_p < 1.0:
        sums = weights[:num_left].cumsum(dim=0)
        # The first token at which the sum reaches the share.
        num_left = min(num_left, int((sums < top_p * sums[-1]).sum()) + 1)
    return float(falling[num_left - 1])


def _describe(logits: Tensor, tokens: list[int], row: int, num_logprobs: int, sampled: SampledBatch) -> None:
    """Adds log-probabilities, ranks and the most likely tokens of a row."""
    if num_logprobs < 0 or tokens[0] < 0:
        sampled.logprobs += [math.nan] * len(tokens)
        sampled.ranks += [0] * len(tokens)
        return
    logprobs = torch.log_softmax(logits.double(), dim=-1).float()
    sampled.logprobs += logprobs[tokens].tolist()
    sampled.ranks += [int((logits > logits[token]).sum()) + 1 for token in tokens]
    _, order = logits.sort(descending=True, stable=True)
    top = order[:num_logprobs]
    sampled.top[row] = tuple(zip(top.tolist(), logprobs[top].tolist(), strict=True))
