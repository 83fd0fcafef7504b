"""A batch's columns as tables of words, as the kernels read them: checked, and laid end to end to be copied once."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.sampling_batch import SamplingBatch, check_sampling
from paged_backend.kernels.token_counts import TokenCounts

NUM_JOB_LINES = 8
"""Of the table of jobs: temperature, top_p and min_p (float64), top_k, position, row, the changed copy or -1, and the
row of token counts or -1."""
NUM_DRAW_LINES = 3
"""Of the table of draws: job, seed, and place among the results."""
TAKES_BEST = -1.0
"""The temperature of a job that draws nothing, and whose top_k tokens are its result."""

_WORD = 2**64 - 1
_MOST = 2**31
"""Tokens are fewer."""


@dataclass(frozen=True, slots=True)
class Filters:
    """Which searches jobs call for.

    Attributes:
        by_count: some job has a top_k or min_p, or takes its most likely tokens.
        by_mass: some job has a top_p below 1.
    """

    by_count: bool
    by_mass: bool


@dataclass(slots=True)
class JobTable:
    """The lines of a table of jobs.

    Attributes:
        filters: what they call for.
    """

    temperatures: array[float]
    top_p: array[float]
    min_p: array[float]
    top_k: array[int]
    positions: array[int]
    rows: array[int]
    copies: array[int]
    counted: array[int]
    filters: Filters

    def __len__(self) -> int:
        return len(self.rows)

    def lines(self) -> tuple[array[Any], ...]:
        """The table."""
        integers = (self.top_k, self.positions, self.rows, self.copies, self.counted)
        return (self.temperatures, self.top_p, self.min_p, *integers)

    def add_copies(self, first: int) -> int:
        """Gives copies to rows that are counted and have none yet; returns how many there are then.

        Args:
            first: the number of the first of them.
        """
        copies = self.copies
        for job, place in enumerate(self.counted):
            if place >= 0 > copies[job]:
                copies[job], first = first, first + 1
        return first


@dataclass(slots=True)
class DrawTable:
    """The lines of a table of draws."""

    jobs: array[int]
    seeds: array[int]
    places: array[int]

    def __len__(self) -> int:
        return len(self.jobs)

    def lines(self) -> tuple[array[int], ...]:
        """The table."""
        return (self.jobs, self.seeds, self.places)


def refuse(logits: Tensor, batch: SamplingBatch) -> NoReturn:
    """Raises the error that says what is wrong with a batch."""
    check_sampling(logits, batch)
    raise KernelError("SamplingBatch must hold Python's own integers and floats.")


def read_jobs(logits: Tensor, batch: SamplingBatch) -> JobTable:
    """A job for each row of a batch: its columns, checked.

    Raises:
        KernelError: they are not what `SamplingBatch` says.
    """
    num_rows = logits.shape[0]
    columns = (batch.temperatures, batch.top_k, batch.top_p, batch.min_p, batch.positions)
    if not all(isinstance(column, (list, tuple)) for column in columns):
        refuse(logits, batch)
    zeros = bytes(8 * num_rows)
    try:
        temperatures = array("d", batch.temperatures)
        draws = any(temperatures)
        if draws:
            top_p, min_p = array("d", batch.top_p), array("d", batch.min_p)
            top_k, positions = _integers(batch.top_k), array("q", batch.positions)
        else:  # what is in these columns has no meaning
            top_p, min_p = array("d", (1.0,)) * num_rows, array("d", zeros)
            top_k, positions = array("q", zeros), array("q", zeros)
    except (TypeError, OverflowError):
        refuse(logits, batch)
    lengths = {len(column) for column in (temperatures, top_k, top_p, min_p, positions)}
    if lengths != {num_rows} or not all(map(math.isfinite, temperatures)) or min(temperatures, default=0.0) < 0.0:
        refuse(logits, batch)
    filters = Filters(False, False)
    if draws:
        shares = all(0.0 < p <= 1.0 for p in top_p) and all(0.0 <= p <= 1.0 for p in min_p)
        if not shares or min(top_k) < -1 or min(positions) < 0:
            refuse(logits, batch)
        filters = Filters(max(top_k) > 0 or max(min_p) > 0.0, min(top_p) < 1.0)
    rows, copies = array("q", range(num_rows)), array("q", (-1,)) * num_rows
    return JobTable(temperatures, top_p, min_p, top_k, positions, rows, copies, _counted(logits, batch), filters)


def read_plain_draws(logits: Tensor, batch: SamplingBatch) -> DrawTable | None:
    """A draw for each row of a batch, or None where a row has more or fewer seeds than one.

    Raises:
        KernelError: there are not as many as rows, or not of integers.
    """
    if len(batch.seeds) != logits.shape[0]:
        refuse(logits, batch)
    try:
        seeds = words_of(seed for (seed,) in batch.seeds)
    except ValueError:
        return None
    except TypeError:
        refuse(logits, batch)
    numbers = array("q", range(len(seeds)))
    return DrawTable(numbers, seeds, numbers)


def _counted(logits: Tensor, batch: SamplingBatch) -> array[int]:
    """For each row, its row of the token counts; -1 without any."""
    num_rows = logits.shape[0]
    nowhere = array("q", (-1,)) * num_rows
    if not batch.counted:
        return nowhere
    counts = batch.token_counts
    try:
        counted = array("q", batch.counted)
        draw_one = all(map((1).__eq__, map(len, batch.seeds))) and not (batch.num_best or batch.given)
    except (TypeError, OverflowError):
        refuse(logits, batch)
    if (
        not isinstance(counts, TokenCounts)
        or counts.counts.shape[1] != logits.shape[1]
        or counts.counts.device != logits.device
        or len(counted) != num_rows
        or min(counted) < -1
        or max(counted) >= len(counts.counts)
        or len({*counted} - {-1}) != num_rows - counted.count(-1)
        or not draw_one
    ):
        check_sampling(logits, batch)  # others than those that are counted may draw more, or nothing
    return counted


def words_of(numbers: Iterable[int]) -> array[int]:
    """Integers of any size, by their lowest 64 bits.

    Raises:
        TypeError: something is no integer.
    """
    return array("q", array("Q", [number & _WORD for number in numbers]).tobytes())


def _integers(column: Sequence[int]) -> array[int]:
    """Numbers of tokens, of any size: more than there are tokens is as good as all.

    Raises:
        TypeError: something is no integer.
    """
    try:
        return array("q", column)
    except OverflowError:
        return array("q", [max(-2, min(number, _MOST)) for number in column])
