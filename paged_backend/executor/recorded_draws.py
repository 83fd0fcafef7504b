"""Draws that a recorded decode step ends with, and whose parameters are in place for them."""

from __future__ import annotations

from torch import Tensor

from paged_backend.kernels.sampling_batch import LaunchedSamples, RecordedSampler, SamplingBatch
from paged_backend.scheduler.plan import ScheduledSequence, StepPlan


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

    def holds(self, plan: StepPlan) -> bool:
        """Whether all that a plan draws is drawn by what is in place.

        A row that is plain once stays so as long as its sequence runs: tokens that must not be drawn become fewer.
        """
        return bool(self._lines) and plan.sequences == self._lines and plan.num_tokens == len(self._lines)

    def serves(self, plan: StepPlan, batch: SamplingBatch) -> bool:
        """Whether a recorded step can draw a plan's batch, one row for each of its sequences."""
        num_rows = len(batch.seeds)
        return num_rows == len(plan.sequences) == plan.num_tokens <= self._max_rows and batch.is_plain

    def words(self, plan: StepPlan, batch: SamplingBatch) -> Tensor:
        """What a step of such a plan has to `place`; it is in place for those that are launched behind it.

        Raises:
            KernelError: the kernels refuse a row.
        """
        words = self._sampler.words(batch)
        self._lines = plan.sequences
        return words

    def place(self, words: Tensor) -> None:
        """The device's work before a step."""
        self._sampler.parameters.copy_(words)

    def samples(self, num_rows: int) -> LaunchedSamples:
        """What the step has drawn for its rows."""
        return self._sampler.samples(num_rows)
