"""Draws that a recorded decode step ends with, and whose parameters are in place for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.interface import Kernels
from paged_backend.kernels.sampling_batch import RecordedSampler
from paged_backend.sampling.unseen import UnseenDraws, UnseenSamples
from paged_backend.scheduler.plan import ScheduledSequence, StepPlan


@dataclass(frozen=True, slots=True)
class RecordedDraw:
    """What `UnseenDraws` is for a step whose recording ends with its draws.

    Attributes:
        sampler: what is recorded.
        num_rows: that are drawn.
        words: what must be in place for that; None where it is already.
    """

    sampler: RecordedSampler
    num_rows: int
    words: Tensor | None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """See `UnseenDraws`."""
        return () if self.words is None else (self.words,)

    def with_tensors(self, tensors: Iterator[Tensor]) -> RecordedDraw:
        """See `UnseenDraws`."""
        return self if self.words is None else RecordedDraw(self.sampler, self.num_rows, next(tensors))

    def begin(self) -> None:
        """See `UnseenDraws`."""
        if self.words is not None:
            self.sampler.parameters.copy_(self.words)

    def launch(self, kernels: Kernels, logits: Tensor, drawn: Tensor) -> UnseenSamples:
        """See `UnseenDraws`. There is nothing left to do; `drawn` is the sampler's own memory."""
        return UnseenSamples(self.sampler.samples(self.num_rows), None)


class RecordedDraws:
    """Keeps in mind whose parameters the sampler's memory holds: as long as the same sequences are decoded, a step has
    nothing to make for its draws.

    Args:
        sampler: what `GraphedStep` has recorded.
        max_rows: of a recorded step.
    """

    def __init__(self, sampler: RecordedSampler, max_rows: int) -> None:
        self._sampler = sampler
        self._max_rows = max_rows
        self._lines: tuple[ScheduledSequence, ...] = ()

    def known(self, plan: StepPlan) -> RecordedDraw | None:
        """The draws of a plan whose parameters are in place; None where they are not.

        A row that is plain once stays so as long as its sequence runs: tokens that must not be drawn become fewer.
        """
        num_rows = len(self._lines)
        if not num_rows or plan.num_tokens != num_rows or plan.sequences != self._lines:
            return None
        return RecordedDraw(self._sampler, num_rows, None)

    def instead(self, plan: StepPlan, draws: UnseenDraws) -> RecordedDraw | UnseenDraws:
        """The same draws, at the end of the recorded step, if that can make them."""
        batch, num_rows = draws.batch, len(draws.batch.seeds)
        is_recorded = num_rows == len(plan.sequences) == plan.num_tokens <= self._max_rows
        if is_recorded and batch.is_plain and draws.again is None:
            with suppress(KernelError):  # launched, it is found out which row is refused
                words = self._sampler.words(batch)
                self._lines = plan.sequences  # if the step fails, they end: no later step has the same
                return RecordedDraw(self._sampler, num_rows, words)
        return draws
