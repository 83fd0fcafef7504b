"""What each row of a batch is there for: tokens to draw, the most likely ones, or tokens that are given."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from torch import Tensor

from paged_backend.kernels.sampling_batch import SamplingBatch, check_sampling
from paged_backend.kernels.triton.sampling.tables import (
    TAKES_BEST,
    DrawTable,
    Filters,
    JobTable,
    read_jobs,
    read_plain_draws,
    refuse,
    words_of,
)


@dataclass(frozen=True, slots=True)
class BatchRows:
    """A batch, row by row.

    Attributes:
        jobs: a job for each row.
        draws: the tokens to draw.
        starts: for each row the first place of its results, and at the end their number.
        best: for each row that takes its most likely tokens, how many.
        given: rows whose tokens are given, in their order.
        num_logprobs: for each row that is described, how many of its most likely tokens are listed; None where there
            can be none.
    """

    jobs: JobTable
    draws: DrawTable
    starts: Sequence[int]
    best: dict[int, int] = field(default_factory=dict)
    given: dict[int, Sequence[int]] = field(default_factory=dict)
    num_logprobs: dict[int, int] | None = None


def read_rows(logits: Tensor, batch: SamplingBatch) -> BatchRows:
    """Reads and checks all of a batch but its changes.

    Raises:
        KernelError: it is not what `SamplingBatch` says.
    """
    if not all(isinstance(column, (list, tuple)) for column in (batch.seeds, batch.num_best, batch.given)):
        refuse(logits, batch)
    jobs = read_jobs(logits, batch)
    num_logprobs = _described(logits, batch)
    draws = read_plain_draws(logits, batch)
    if draws is not None and not batch.num_best and not batch.given:
        return BatchRows(jobs, draws, range(len(jobs) + 1), num_logprobs=num_logprobs)
    check_sampling(logits, replace(batch, changes={}))
    best = {row: count for row, count in enumerate(batch.num_best) if count}
    given = {row: tokens for row, tokens in enumerate(batch.given) if tokens}
    sizes = [best.get(row) or len(given.get(row) or seeds) for row, seeds in enumerate(batch.seeds)]
    starts = [0, *accumulate(sizes)]
    drawn = [row for row in range(len(jobs)) if row not in best and row not in given]
    draws = DrawTable(
        array("q", [row for row in drawn for _ in batch.seeds[row]]),
        words_of(seed for row in drawn for seed in batch.seeds[row]),
        array("q", [place for row in drawn for place in range(starts[row], starts[row + 1])]),
    )
    for row in (*best, *given):
        jobs.temperatures[row] = TAKES_BEST if row in best else 0.0
        jobs.top_k[row], jobs.top_p[row], jobs.min_p[row] = best.get(row, 0), 1.0, 0.0
    jobs.filters = Filters(jobs.filters.by_count or bool(best), jobs.filters.by_mass)
    return BatchRows(jobs, draws, starts, best, given, num_logprobs)


def _described(logits: Tensor, batch: SamplingBatch) -> dict[int, int] | None:
    counts = batch.num_logprobs
    if not isinstance(counts, (list, tuple)):
        refuse(logits, batch)
    if not counts:
        return None
    try:
        if len(counts) != logits.shape[0] or min(counts) < -1 or not all(isinstance(count, int) for count in counts):
            refuse(logits, batch)
    except TypeError:
        refuse(logits, batch)
    return {row: min(count, logits.shape[1]) for row, count in enumerate(counts) if count >= 0}
