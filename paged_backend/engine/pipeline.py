"""Steps on their way: planned, computed, and, with async_scheduling, one more begun before the last one is read."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from paged_backend.errors import EngineUnavailableError
from paged_backend.executor.executor import Executor
from paged_backend.executor.pending import PendingStep
from paged_backend.scheduler.plan import StepPlan, StepResult
from paged_backend.scheduler.scheduler import Scheduler

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ComputedStep:
    """A step that is over, but for its commit.

    Attributes:
        result: what it drew for those who are still there; None where it failed.
        num_tokens: computed for them.
        began_s: `time.monotonic` when it began, or the one before it ended.
    """

    plan: StepPlan
    result: StepResult | None
    num_tokens: int
    began_s: float


class StepPipeline:
    """Gets the scheduler's plans computed, in their order; the engine's thread alone.

    Between two calls of `next` at most one step is in flight: one that was planned ahead (`Scheduler.plan_ahead`), so
    that the device has work while the host reads the step before, makes text, and takes requests in.

    Args:
        on_plan: told of each plan as soon as it is made.
    """

    def __init__(self, scheduler: Scheduler, executor: Executor, on_plan: Callable[[StepPlan], None]) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._on_plan = on_plan
        self._overlaps = executor.async_scheduling
        self._ahead: tuple[StepPlan, PendingStep] | None = None
        self._ended_s = 0.0

    @property
    def in_flight(self) -> bool:
        """Whether a step is computed that nobody has waited for."""
        return self._ahead is not None

    def next(self, started_s: float) -> ComputedStep:
        """The next step's result, for the scheduler to `commit`, or to `fail`.

        Args:
            started_s: `time.monotonic` when the engine turned to it.
        """
        if not self._overlaps:
            plan = self._plan()
            result = _result_of(lambda: self._executor.run(plan))
            return ComputedStep(plan, result, plan.num_tokens, started_s)
        plan, pending = self._ahead or self._launch(self._plan())
        ahead = self._scheduler.plan_ahead()
        self._ahead = None
        if ahead is not None:
            self._on_plan(ahead)
            self._ahead = self._launch(ahead)
        result = _result_of(pending.result)
        began_s, self._ended_s = max(pending.began_s, self._ended_s), time.monotonic()
        if result is None:
            return ComputedStep(plan, None, 0, began_s)
        result, num_tokens = self._scheduler.strike(result)
        return ComputedStep(plan, result, num_tokens, began_s)

    def close(self) -> None:
        """Waits for what is in flight; nobody wants it any more."""
        if self._ahead is not None:
            with suppress(EngineUnavailableError):
                _result_of(self._ahead[1].result)
            self._ahead = None

    def _plan(self) -> StepPlan:
        plan = self._scheduler.plan()
        self._on_plan(plan)
        return plan

    def _launch(self, plan: StepPlan) -> tuple[StepPlan, PendingStep]:
        return plan, self._executor.launch(plan)


def _result_of(compute: Callable[[], StepResult]) -> StepResult | None:
    try:
        return compute()
    except EngineUnavailableError:
        raise  # nor can any other step be computed
    except Exception:
        logger.exception("a step failed; its requests end, the others go on")
        return None
