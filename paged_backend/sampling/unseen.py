"""Drawing without looking: the tokens stay where the logits are, and are read when the next step is under way."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.interface import Kernels
from paged_backend.kernels.sampling_batch import LaunchedSamples, ReadSamples, SampledBatch, SamplingBatch
from paged_backend.sampling.counted_tokens import CountedTokens, CountUpdate
from paged_backend.sampling.description import add_asked, second_look
from paged_backend.sampling.sampler import NOTHING_LEFT, build_batch, described_tokens
from paged_backend.scheduler.plan import NOT_DRAWN, SamplingTask, StepResult

logger = logging.getLogger(__name__)

_COLUMNS = ("seeds", "temperatures", "positions", "top_k", "top_p", "min_p", "num_logprobs", "counted")


@dataclass(frozen=True, slots=True)
class UnseenDraws:
    """What a step draws, made when it is launched: of its tasks nothing is looked at any more.

    Attributes:
        batch: one draw for each of them.
        update: what its counts must be told first, if anything.
        again: of rows whose logits are looked at a second time, as they came (`second_look`); None without any.
        rows: int64, which these are.
    """

    batch: SamplingBatch
    update: CountUpdate | None
    again: SamplingBatch | None
    rows: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that the device must have, of int32 and int64."""
        tensors = () if self.update is None else self.update.tensors
        return tensors if self.again is None else (*tensors, self.rows)

    def with_tensors(self, tensors: Iterator[Tensor]) -> UnseenDraws:
        """The same, with the next ones in the places of `tensors`."""
        update = None if self.update is None else self.update.with_tensors(tensors)
        return UnseenDraws(self.batch, update, self.again, self.rows if self.again is None else next(tensors))

    def launch(self, kernels: Kernels, logits: Tensor) -> UnseenSamples:
        """For the device, which has the tensors, when the logits are there."""
        if self.update is not None:
            self.update.apply()
        samples = _launch(kernels, logits, self.batch)
        if self.again is None:
            return UnseenSamples(samples, None)
        return UnseenSamples(samples, kernels.launch_sample(logits.index_select(0, self.rows), self.again))


def prepare_draws(tasks: Sequence[SamplingTask], counted: CountedTokens) -> UnseenDraws:
    """The draws of a step of which `StepPlan.draws_unseen` holds.

    Args:
        counted: of the steps before.
    """
    rows, update = counted.rows_for(tasks)
    batch = build_batch(tasks, are_counted=True)
    if rows:
        batch.counted, batch.token_counts = rows, counted.counts
    looking = [row for row, task in enumerate(tasks) if task.looks_again]
    again = second_look([tasks[row] for row in looking]) if looking else None
    return UnseenDraws(batch, update, again, torch.tensor(looking, dtype=torch.int64))


class UnseenSamples:
    """What was drawn, or will have been when the device gets there.

    Attributes:
        token_ids: int64 [N], on the device, one for each task.
    """

    def __init__(self, samples: LaunchedSamples, again: LaunchedSamples | None) -> None:
        self.token_ids = samples.token_ids
        self._samples = samples
        self._again = again

    def read(self, tasks: Sequence[SamplingTask]) -> StepResult:
        """The step's result; waits for it, if need be.

        Args:
            tasks: that it was prepared of.
        """
        sampled = self._samples.read()
        described = described_tokens(sampled, tasks) if sampled.logprobs else {}
        if self._again is None:
            return StepResult(sampled.token_ids, described)
        looked = [(task, place) for place, task in enumerate(tasks) if task.looks_again]
        are_numbers = add_asked(described, self._again.read(), looked)
        faults = {
            place: NOTHING_LEFT
            for (_, place), is_number in zip(looked, are_numbers, strict=True)
            if is_number and sampled.token_ids[place] == NOT_DRAWN
        }
        return StepResult(sampled.token_ids, described, faults=faults)


def _launch(kernels: Kernels, logits: Tensor, batch: SamplingBatch) -> LaunchedSamples:
    """`Kernels.launch_sample`, but a row that the kernels refuse leaves nothing to draw, and its neighbours go on."""
    try:
        return kernels.launch_sample(logits, batch)
    except KernelError:
        rows = [_launch_row(kernels, logits[row : row + 1], _row_of(batch, row)) for row in range(logits.shape[0])]
        return _Apart(rows, logits.device)


class _Apart:
    """Rows that were drawn each by itself."""

    def __init__(self, rows: Sequence[LaunchedSamples], device: torch.device) -> None:
        # What was refused is known to the host alone.
        self.token_ids = torch.cat([row.token_ids.to(device, non_blocking=True) for row in rows])
        self._rows = rows

    def read(self) -> SampledBatch:
        whole = SampledBatch([])
        sampled = [row.read() for row in self._rows]
        describes = any(one.logprobs for one in sampled)
        for row, one in enumerate(sampled):
            whole.token_ids += one.token_ids
            if describes:
                whole.logprobs += one.logprobs or [0.0]
                whole.ranks += one.ranks or [0]
                if one.top:
                    whole.top[row] = one.top[0]
        return whole


def _launch_row(kernels: Kernels, logits: Tensor, batch: SamplingBatch) -> LaunchedSamples:
    try:
        return kernels.launch_sample(logits, batch)
    except KernelError:
        logger.exception("a row cannot be sampled; its request ends")
        return ReadSamples(SampledBatch([NOT_DRAWN]))


def _row_of(batch: SamplingBatch, row: int) -> SamplingBatch:
    columns = {name: getattr(batch, name)[row : row + 1] for name in _COLUMNS}
    changes = {0: batch.changes[row]} if row in batch.changes else {}
    return replace(batch, **columns, changes=changes)
