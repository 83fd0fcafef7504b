"""Draws of plain rows out of memory that stays where it is, so that a CUDA graph can hold the launches."""

from __future__ import annotations

from array import array
from typing import Any

import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.sampling_batch import SamplingBatch
from paged_backend.kernels.token_counts import TokenCounts
from paged_backend.kernels.triton.sampling.device_samples import DeviceSamples, ResultShape
from paged_backend.kernels.triton.sampling.launch import check_device_logits
from paged_backend.kernels.triton.sampling.passes import Passes, Scratch, check_vocab_size
from paged_backend.kernels.triton.sampling.tables import (
    NUM_JOB_LINES,
    Filters,
    read_jobs,
    read_plain_draws,
)
from paged_backend.kernels.triton.sampling.upload import staged

ALL_FILTERS = Filters(by_count=True, by_mass=True)
"""For a graph that serves whatever its rows ask for: rows without filters cost it launches that return at once."""


def is_plain(batch: SamplingBatch, counts: TokenCounts | None = None) -> bool:
    """Whether each row draws one token, from the logits as they are, but for penalties by these counts, and nothing is
    to be told of it."""
    if batch.counted and batch.token_counts is not counts:
        return False
    if batch.changes or batch.num_logprobs or batch.num_best or batch.given:
        return False
    return all(map((1).__eq__, map(len, batch.seeds)))


class ResidentSampler:
    """Samples up to so many plain rows; one step at a time.

    `write` puts a step's parameters in place, `run` launches kernels on them (and may be captured, for any number of
    rows, once each), `samples` fetches what was drawn. The tokens are those of `launch`, bit for bit.

    Attributes:
        token_ids: int64 [max_rows], on the device: what the last `run` has drawn, row by row.
    """

    def __init__(self, max_rows: int, vocab_size: int, device: torch.device, counts: TokenCounts | None = None) -> None:
        """
        Args:
            counts: by which rows may be penalised; takes memory for a copy of each row's logits.

        Raises:
            KernelError: the kernels do not sample so large a vocabulary.
        """
        check_vocab_size(vocab_size)
        self._vocab_size = vocab_size
        nobody = SamplingBatch(seeds=[(0,)] * max_rows, temperatures=[0.0] * max_rows)
        self._empty = _table(self._lines(nobody)[0])
        self._words = self._empty.to(device, copy=True)
        self._scratch = Scratch.make(max_rows, vocab_size, device)
        self._counts = counts
        self._changed = None if counts is None else torch.empty(max_rows, vocab_size, device=device)
        self.token_ids = torch.zeros(max_rows, dtype=torch.int64, device=device)

    def write(self, batch: SamplingBatch) -> Filters:
        """Orders a batch's parameters to be put in place, behind what has been ordered; `run` draws by them.

        Rows after the batch's draw from whatever logits they get, with temperature 0, for nobody.

        Args:
            batch: a plain one, of max_rows rows at most; not looked at any more once this returns.

        Returns:
            What its rows call for.

        Raises:
            KernelError: the batch is not what `SamplingBatch` says, or larger.
        """
        assert is_plain(batch, self._counts)
        num_rows, max_rows = len(batch.seeds), len(self.token_ids)
        if num_rows > max_rows:
            raise KernelError(f"seeds must be of {max_rows} rows at most, got {num_rows}.")
        lines, filters = self._lines(batch)
        if num_rows:
            words = self._empty.clone()
            words[:, :num_rows] = _table(lines)
            self._words.copy_(staged(words, self._words.device), non_blocking=True)
        return filters

    def run(self, logits: Tensor, filters: Filters = ALL_FILTERS) -> None:
        """Launches a draw for each of some rows, from the first on.

        Args:
            logits: float32 [R, V] on the device, R at most max_rows, any row stride.
            filters: those of `write`, or more.
        """
        check_device_logits(logits)
        num_rows = logits.shape[0]
        jobs, draws = self._words[:NUM_JOB_LINES], self._words[NUM_JOB_LINES:]
        passes = Passes(logits, jobs, self._scratch, changed=self._changed, counts=self._counts, num_jobs=num_rows)
        if self._counts is not None:
            passes.penalise(0)
        passes.look()
        passes.narrow(filters)
        passes.draw(draws, num_rows, self.token_ids)

    def _lines(self, batch: SamplingBatch) -> tuple[list[array[Any]], Filters]:
        """The lines of both tables of a batch, and its filters."""
        logits = torch.empty(1, 1).expand(len(batch.seeds), self._vocab_size)  # for their shape
        jobs, draws = read_jobs(logits, batch), read_plain_draws(logits, batch)
        assert draws is not None
        jobs.copies = array("q", [row if place >= 0 else -1 for row, place in enumerate(jobs.counted)])
        return [*jobs.lines(), *draws.lines()], jobs.filters

    def samples(self, num_rows: int) -> DeviceSamples:
        """What the last `run` has drawn for the first rows, to be read whenever; its token_ids until the next `run`."""
        return DeviceSamples(ResultShape(num_rows), self.token_ids[:num_rows])


def _table(lines: list[array[Any]]) -> Tensor:
    words = bytearray().join([line.tobytes() for line in lines])
    return torch.frombuffer(words, dtype=torch.int64).view(len(lines), -1)
