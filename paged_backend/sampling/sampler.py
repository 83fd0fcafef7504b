"""Draws a step's tokens, all rows at once, each as if it were alone: from tasks to columns, and back to tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from torch import Tensor

from paged_backend.kernels.interface import Kernels
from paged_backend.kernels.sampling_batch import SampledBatch, SamplingBatch
from paged_backend.sampling.processors import changes_logits, logit_changes
from paged_backend.scheduler.plan import SampledToken, SamplingTask


def sample(kernels: Kernels, logits: Tensor, tasks: Sequence[SamplingTask]) -> list[tuple[SampledToken, ...]]:
    """Draws one token per row and seed.

    Args:
        logits: float32 [R, vocab_size].
        tasks: one for each row.

    Returns:
        One tuple per row with a token for each of its seeds; an empty one where the row's logits are not
        numbers, or its parameters leave no token to draw.
    """
    if not tasks:
        return []
    sampled = kernels.sample(logits, build_batch(tasks))
    if len(sampled.token_ids) == len(tasks) and not sampled.logprobs and min(sampled.token_ids) >= 0:
        return list(zip(map(SampledToken, sampled.token_ids)))  # of one iterable: tuples of one
    return _gather(sampled, tasks)


def build_batch(tasks: Sequence[SamplingTask]) -> SamplingBatch:
    """The tasks as columns. Runs at every step over all rows, hence the comprehensions."""
    params = [task.params for task in tasks]
    temperatures = [p.temperature for p in params]
    batch = SamplingBatch(seeds=[task.seeds for task in tasks], temperatures=temperatures)
    if any(temperatures):
        batch.positions = [task.position for task in tasks]
        batch.top_k = [p.top_k for p in params]
        batch.top_p = [p.top_p for p in params]
        batch.min_p = [p.min_p for p in params]
    counts = [p.logprobs for p in params]
    if counts.count(None) < len(counts):
        batch.num_logprobs = [-1 if count is None else count for count in counts]
    changed = [row for row, task in enumerate(tasks) if changes_logits(task)]
    if changed:
        batch.changes = {row: logit_changes(tasks[row]) for row in changed}
    return batch


def _gather(sampled: SampledBatch, tasks: Sequence[SamplingTask]) -> list[tuple[SampledToken, ...]]:
    """The tokens of each row; where they are described, with what was said of them."""
    token_ids, logprobs, ranks = iter(sampled.token_ids), iter(sampled.logprobs), iter(sampled.ranks)
    samples: list[tuple[SampledToken, ...]] = []
    for row, task in enumerate(tasks):
        num_samples = len(task.seeds)
        own = list(islice(token_ids, num_samples))
        described = list(zip(own, islice(logprobs, num_samples), islice(ranks, num_samples), strict=False))
        if own[0] < 0:
            samples.append(())
        elif task.params.logprobs is None:
            samples.append(tuple(map(SampledToken, own)))
        else:
            top = sampled.top[row]
            samples.append(tuple(SampledToken(*token, top) for token in described))
    return samples
