"""`Kernels.sample` in plain torch, a row at a time, all sums in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from paged_backend.kernels.counted_sampling import sample_counted
from paged_backend.kernels.reference.random_bits import uniform
from paged_backend.kernels.sampling_batch import LogitChanges, SampledBatch, SamplingBatch, check_sampling


def sample(logits: Tensor, batch: SamplingBatch) -> SampledBatch:
    """See `Kernels.sample`. On any device."""
    if batch.counted:
        return sample_counted(sample, logits, batch)
    check_sampling(logits, batch)
    sampled = SampledBatch([])
    peaks, best = _largest(logits)
    takes_best = any(batch.num_best)
    for row, seeds in enumerate(batch.seeds):
        raw = changed = logits[row]
        # The largest logit tells of any that is not a number: NaN and +inf win every comparison.
        sound, token = math.isfinite(peaks[row]), best[row]
        if batch.given and batch.given[row]:
            tokens = list(batch.given[row]) if sound else [-1] * len(batch.given[row])
            if takes_best:
                sampled.scores += [-math.inf] * len(tokens)
            _add(sampled, tokens, batch, row, raw)
            continue
        if takes_best and batch.num_best[row]:
            tokens, scores = _most_likely(raw, batch, row) if sound else ([], [])
            num_missing = batch.num_best[row] - len(tokens)
            tokens += [-1] * num_missing
            sampled.scores += scores + [-math.inf] * num_missing
            _add(sampled, tokens, batch, row, raw)
            continue
        if row in batch.changes and sound:
            changed = change_logits(raw, batch.changes[row], batch.token_masks)
            (peak,), (token,) = _largest(changed[None])
            sound = math.isfinite(peak)
        if not sound:
            tokens = [-1] * len(seeds)
        elif batch.temperatures[row] == 0.0:
            tokens = [token] * len(seeds)
        else:
            tokens = _draw(changed, batch, row)
        if takes_best:
            sampled.scores += [-math.inf] * len(tokens)
        _add(sampled, tokens, batch, row, raw)
    return sampled


def _add(sampled: SampledBatch, tokens: list[int], batch: SamplingBatch, row: int, logits: Tensor) -> None:
    """Adds a row's tokens, and what it asks to know of them."""
    sampled.token_ids += tokens
    if batch.num_logprobs:
        _describe(logits, tokens, row, batch.num_logprobs[row], sampled)


def _most_likely(logits: Tensor, batch: SamplingBatch, row: int) -> tuple[list[int], list[float]]:
    """The num_best most likely tokens, or as many as there are, and their changed log-probabilities."""
    logprobs = torch.log_softmax(logits.double(), dim=-1).float()
    changes = batch.changes.get(row)
    order = logits
    if changes is not None:
        order = logprobs = change_logits(logprobs, changes, batch.token_masks)
    tokens = order.sort(descending=True, stable=True).indices[: batch.num_best[row]]
    tokens = tokens[logprobs[tokens] > -math.inf]
    return tokens.tolist(), logprobs[tokens].tolist()


def _largest(logits: Tensor) -> tuple[list[float], list[int]]:
    """Each row's largest logit, NaN if it has one, and the first token that has it."""
    values = logits.cpu().numpy()
    best = values.argmax(axis=-1).tolist()  # of equals, torch's takes any
    return [float(values[row, token]) for row, token in enumerate(best)], best


def change_logits(logits: Tensor, changes: LogitChanges, token_masks: Tensor | None = None) -> Tensor:
    """What `LogitChanges` says, in float32.

    Args:
        logits: float32 [V].
        token_masks: the batch's.

    Returns:
        A new tensor like it.
    """
    result = logits.clone()
    if changes.token_mask >= 0:
        assert token_masks is not None
        result[~_bits(token_masks[changes.token_mask], len(logits)).to(logits.device)] = -torch.inf
    if changes.allowed_token_ids is not None:
        allowed = _indices(changes.allowed_token_ids, logits)
        kept = result[allowed]
        result.fill_(-torch.inf)
        result[allowed] = kept
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


def _bits(words: Tensor, count: int) -> Tensor:
    """The first bits of int32 words, as booleans, the lowest bit of a word first."""
    return (words[:, None] >> torch.arange(32, dtype=torch.int32) & 1).reshape(-1)[:count].bool()


def _indices(token_ids: object, like: Tensor) -> Tensor:
    return torch.tensor(token_ids, dtype=torch.int64, device=like.device)


def _draw(logits: Tensor, batch: SamplingBatch, row: int) -> list[int]:
    """Inverts the cumulative distribution, in the order of token ids, at the numbers that the seeds give."""
    peak = float(logits.max())
    lowest = _lowest_kept_logit(logits, peak, batch, row)
    weights = _weights(logits, peak, batch.temperatures[row]).masked_fill_(logits < lowest, 0.0)
    sums = weights.cumsum(dim=0)
    points = [uniform(seed, batch.positions[row]) for seed in batch.seeds[row]]
    # The first token whose sum exceeds the point: never one of weight 0; and as the points are below 1 by at least
    # 2 ** -53, their product with the total is below the total, so there always is one.
    total = sums[-1]
    drawn: list[int] = torch.searchsorted(
        sums, torch.tensor(points, dtype=torch.float64, device=logits.device) * total, right=True
    ).tolist()
    return drawn


def _weights(logits: Tensor, peak: float, temperature: float) -> Tensor:
    """float64: probabilities in multiples of the largest."""
    # Shifted first: a temperature near 0 then gives 0 and -inf, never a difference of infinities.
    return (logits.double() - peak).div_(temperature).exp_()


def _lowest_kept_logit(logits: Tensor, peak: float, batch: SamplingBatch, row: int) -> float:
    """The logit that a token needs to be drawn: min_p, then top_k, then top_p of what they left."""
    top_k, top_p, min_p = batch.top_k[row], batch.top_p[row], batch.min_p[row]
    if min_p == 0.0 and top_p == 1.0 and not 0 < top_k < len(logits):
        return -math.inf
    negated = (-logits).cpu().numpy()
    negated.sort()  # several times as fast as torch's
    falling = -torch.from_numpy(negated)
    weights = _weights(falling, peak, batch.temperatures[row])
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
    sampled.logprobs += [float(logprobs[token]) if token >= 0 else math.nan for token in tokens]
    sampled.ranks += [int((logits > logits[token]).sum()) + 1 if token >= 0 else 0 for token in tokens]
    if num_logprobs == 0:
        sampled.top[row] = ()
        return
    num_top = min(num_logprobs, len(logits))
    likely = (logits >= logits.topk(num_top).values[-1]).nonzero()[:, 0]  # by id, and with all equals of the last
    top = likely[logits[likely].sort(descending=True, stable=True).indices[:num_top]]
    sampled.top[row] = tuple(zip(top.tolist(), logprobs[top].tolist(), strict=True))
