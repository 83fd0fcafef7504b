"""A step that a device has been told of, and what is read of it when it is over."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from paged_backend.errors import EngineUnavailableError
from paged_backend.executor.device import Device, Ordered
from paged_backend.sampling.unseen import UnseenSamples
from paged_backend.scheduler.plan import SamplingTask, StepResult


class PendingStep(Protocol):
    """A step under way.

    Attributes:
        began_s: `time.monotonic` when the device was told of it.
    """

    began_s: float

    def result(self) -> StepResult:
        """Waits for its end.

        Raises:
            EngineUnavailableError: there is nothing left that could compute a step.
            Exception: what went wrong.
        """
        ...


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step's work leaves behind.

    Attributes:
        logits: of the rows that are sampled or scored; None where there are none.
        samples: what was drawn from them already; None where that is left to the host.
        marks: of the beginning, after blocks were moved between tiers, and the end.
    """

    logits: Tensor | None
    samples: UnseenSamples | None
    marks: tuple[Any, Any, Any]


class LaunchedStep:
    """A step that a `Device` computes."""

    __slots__ = ("_device", "_draw", "_is_timed", "_output", "_tasks", "began_s")

    def __init__(
        self,
        output: Ordered[StepOutput],
        tasks: Sequence[SamplingTask],
        draw: Callable[[Tensor], StepResult],
        device: Device,
        *,
        is_timed: bool,
    ) -> None:
        """
        Args:
            tasks: what is drawn for.
            draw: draws from logits here, where the work did not.
            is_timed: whether the result says how long it took.
        """
        self.began_s = time.monotonic()
        self._output = output
        self._tasks = tasks
        self._draw = draw
        self._device = device
        self._is_timed = is_timed

    def result(self) -> StepResult:
        """See `PendingStep`."""
        try:
            return self._result()
        except EngineUnavailableError:
            raise
        except Exception:
            self._device.check()
            raise

    def _result(self) -> StepResult:
        output = self._output.result()
        if output.samples is not None:
            result = output.samples.read(self._tasks)
        elif output.logits is not None:
            result = self._draw(output.logits)
        else:
            result = StepResult(())
        if not self._is_timed:
            return result
        begin, moved, end = output.marks
        seconds = self._device.seconds
        return dataclasses.replace(result, transfer_s=seconds(begin, moved), compute_s=seconds(moved, end))
