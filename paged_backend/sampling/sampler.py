"""Draws a step's tokens, all rows at once, each as if it were alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from paged_backend.sampling.filters import lowest_kept_probability
from paged_backend.sampling.processors import changes_logits, process_logits
from paged_backend.sampling.random_bits import uniform
from paged_backend.scheduler.plan import SampledToken, SamplingTask

_DRAWN_AT_ONCE = 2**17
"""Numbers in a piece of the logits that is drawn from at once: 1 MiB of float64, which the caches can hold."""


def sample(logits: Tensor, tasks: Sequence[SamplingTask]) -> list[tuple[SampledToken, ...]]:
    """Draws one token per row and seed.

    Args:
        logits: float32 [R, vocab_size]. May be changed.
        tasks: one for each row.

    Returns:
        One tuple per row with a token for each of its seeds; an empty one where the row's logits are not
        numbers, or its parameters leave no token to draw.
    """
    if not tasks:
        return []
    peaks, best = _largest(logits)
    # The largest logit tells of any that is not a number: NaN and +inf win every comparison.
    sound = [math.isfinite(peak) for peak in peaks]
    changed = [row for row, task in enumerate(tasks) if sound[row] and changes_logits(task)]
    asking = [row for row, task in enumerate(tasks) if sound[row] and task.params.logprobs is not None]
    logprobs = torch.log_softmax(logits[asking], dim=-1) if asking else None
    if changed:
        process_logits(logits.numpy(), tasks, changed)
        for row, peak, token in zip(changed, *_largest(logits[changed]), strict=True):
            best[row], sound[row] = token, math.isfinite(peak)
    tokens: list[tuple[int, ...]] = [
        (best[row],) * len(task.seeds) if sound[row] else () for row, task in enumerate(tasks)
    ]
    random = [row for row, task in enumerate(tasks) if sound[row] and not task.params.greedy]
    if random:
        num_rows = max(1, _DRAWN_AT_ONCE // logits.shape[1])
        for start in range(0, len(random), num_rows):
            rows = random[start : start + num_rows]
            drawn = _draw(logits[rows], [tasks[row] for row in rows])
            for row, row_tokens in zip(rows, drawn, strict=True):
                tokens[row] = row_tokens
    samples = [tuple(map(SampledToken, row_tokens)) for row_tokens in tokens]
    if logprobs is not None:
        asked = [row for row in asking if tokens[row]]
        if len(asked) < len(asking):
            kept = torch.tensor([bool(tokens[row]) for row in asking])
            logprobs = logprobs[kept]
        for row, described in zip(
            asked,
            _describe(logprobs, [tokens[row] for row in asked], [tasks[row] for row in asked]),
            strict=True,
        ):
            samples[row] = described
    return samples


def _largest(logits: Tensor) -> tuple[list[float], list[int]]:
    """Each row's largest logit, NaN if it has one, and the first token that has it."""
    values = logits.numpy()
    best = values.argmax(axis=-1)  # numpy's is several times as fast as torch's
    return values[np.arange(len(values)), best].tolist(), best.tolist()


def _draw(logits: Tensor, tasks: Sequence[SamplingTask]) -> list[tuple[int, ...]]:
    """Inverts each row's cumulative distribution, in the order of token ids, at the numbers its seeds give.

    All in float64, and row by row in the library's own loops: softmax, top-k and cumulative sums of a row do
    not look at how many rows there are (tests/sampling checks that to the bit).
    """
    temperatures = torch.tensor([task.params.temperature for task in tasks], dtype=torch.float64)
    # Shifted first: a temperature near 0 then gives 0 and -inf, never a difference of infinities.
    scaled = logits.double()
    scaled = scaled.sub_(scaled.amax(dim=-1, keepdim=True)).div_(temperatures[:, None])
    probabilities = torch.softmax(scaled, dim=-1)
    lowest = lowest_kept_probability(probabilities, [task.params for task in tasks])
    if lowest is not None:
        probabilities.masked_fill_(probabilities < lowest[:, None], 0.0)
    sums = probabilities.cumsum(dim=-1)
    most = max(len(task.seeds) for task in tasks)
    points = torch.tensor(
        [[uniform(seed, task.position) for seed in task.seeds] + [0.0] * (most - len(task.seeds)) for task in tasks],
        dtype=torch.float64,
    )
    # The first token whose sum exceeds the point: never one of probability 0; and as the points are below 1
    # by at least 2 ** -53, their product with the total is below the total, so there always is one.
    drawn: list[list[int]] = torch.searchsorted(sums, points * sums[:, -1:], right=True).tolist()
    return [tuple(row[: len(task.seeds)]) for row, task in zip(drawn, tasks, strict=True)]


def _describe(
    logprobs: Tensor, tokens: Sequence[tuple[int, ...]], tasks: Sequence[SamplingTask]
) -> list[tuple[SampledToken, ...]]:
    """Samples with their log-probabilities, ranks and the most likely tokens, all of the raw distribution.

    Args:
        logprobs: float32 [R, vocab_size].
        tokens: what each row drew.
        tasks: one for each row, all asking for logprobs.
    """
    counts = torch.tensor([len(row_tokens) for row_tokens in tokens], dtype=torch.int64)
    drawn = torch.tensor([token for row_tokens in tokens for token in row_tokens], dtype=torch.int64)
    repeated = logprobs.repeat_interleave(counts, dim=0)
    own = repeated.gather(1, drawn[:, None])[:, 0]
    ranks = iter(((repeated > own[:, None]).sum(dim=-1) + 1).tolist())
    own_values = iter(own.tolist())
    tops = _most_likely(logprobs, [task.params.logprobs or 0 for task in tasks])
    return [
        tuple(SampledToken(token, next(own_values), next(ranks), top) for token in row_tokens)
        for row_tokens, top in zip(tokens, tops, strict=True)
    ]


def _most_likely(logprobs: Tensor, counts: Sequence[int]) -> list[tuple[tuple[int, float], ...]]:
    """(token id, logprob) of each row's most likely tokens.

    Rows that ask for the same number are looked at together, and only those: which of several equals comes
    last would else depend on what other rows ask for.
    """
    tops: list[tuple[tuple[int, float], ...]] = [()] * len(counts)
    for count in sorted(set(counts) - {0}):
        rows = [row for row, number in enumerate(counts) if number == count]
        values, ids = logprobs[rows].topk(min(count, logprobs.shape[1]), dim=-1)
        for row, row_ids, row_values in zip(rows, ids.tolist(), values.tolist(), strict=True):
            tops[row] = tuple(zip(row_ids, row_values, strict=True))
    return tops
