"""Draws of plain rows out of memory that stays where it is, so that a CUDA graph can hold the launches."""

from __future__ import annotations

from array import array
from typing import Any

import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.sampling_batch import SamplingBatch
from paged_backend.kernels.triton.sampling.arithmetic import POSITION
from paged_backend.kernels.triton.sampling.device_samples import DeviceSamples, ResultShape
from paged_backend.kernels.triton.sampling.launch import check_device_logits
from paged_backend.kernels.triton.sampling.passes import Passes, Scratch, check_vocab_size
from paged_backend.kernels.triton.sampling.tables import (
    NUM_JOB_LINES,
    Filters,
    read_jobs,
    read_plain_draws,
)

_ALL_FILTERS = Filters(by_count=True, by_mass=True)
"""A graph serves whatever its rows ask for: rows without filters cost it launches that return at once."""


class ResidentSampler:
    """See `RecordedSampler`. The tokens are those of `launch`, bit for bit.

    Attributes:
        parameters, token_ids: see `RecordedSampler`.
    """

    def __init__(self, max_rows: int, vocab_size: int, device: torch.device) -> None:
        """
        Raises:
            KernelError: the kernels do not sample so large a vocabulary.
        """
        check_vocab_size(vocab_size)
        self._vocab_size = vocab_size
        nobody = SamplingBatch(seeds=[(0,)] * max_rows, temperatures=[0.0] * max_rows)
        self._empty = _table(self._lines(nobody))
        self._scratch = Scratch.make(max_rows, vocab_size, device)
        self.parameters = self._empty.to(device, copy=True)
        self.token_ids = torch.zeros(max_rows, dtype=torch.int64, device=device)

    def words(self, batch: SamplingBatch) -> Tensor:
        """See `RecordedSampler`. Rows after the batch's draw with temperature 0, for nobody."""
        assert batch.is_plain
        num_rows, max_rows = len(batch.seeds), len(self.token_ids)
        if num_rows > max_rows:
            raise KernelError(f"seeds must be of {max_rows} rows at most, got {num_rows}.")
        lines = self._lines(batch)
        words = self._empty.clone()
        if num_rows:
            words[:, :num_rows] = _table(lines)
        return words

    def run(self, logits: Tensor, positions: Tensor) -> None:
        """See `RecordedSampler`."""
        check_device_logits(logits)
        num_rows = logits.shape[0]
        jobs, draws = self.parameters[:NUM_JOB_LINES], self.parameters[NUM_JOB_LINES:]
        jobs[POSITION.value, :num_rows] = positions
        passes = Passes(logits, jobs, self._scratch, num_jobs=num_rows)
        passes.look()
        passes.narrow(_ALL_FILTERS)
        passes.draw(draws, num_rows, self.token_ids)

    def samples(self, num_rows: int) -> DeviceSamples:
        """See `RecordedSampler`."""
        return DeviceSamples(ResultShape(num_rows), self.token_ids[:num_rows])

    def _lines(self, batch: SamplingBatch) -> list[array[Any]]:
        """The lines of both tables of a batch."""
        logits = torch.empty(1, 1).expand(len(batch.seeds), self._vocab_size)  # for their shape
        jobs, draws = read_jobs(logits, batch), read_plain_draws(logits, batch)
        assert draws is not None
        return [*jobs.lines(), *draws.lines()]


def _table(lines: list[array[Any]]) -> Tensor:
    words = bytearray().join([line.tobytes() for line in lines])
    return torch.frombuffer(words, dtype=torch.int64).view(len(lines), -1)
