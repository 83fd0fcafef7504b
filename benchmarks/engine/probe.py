"""Looks into a running engine: what each step's parts took, and what its cache held.

The engine's own methods are wrapped while the probe is in use; nothing of it is copied, and nothing of it knows. This
is the one file of the benchmarks that names the engine's private parts.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final
from unittest.mock import patch

from benchmarks.machine import num_cores
from paged_backend.engine.client import EngineClient
from paged_backend.engine.engine_thread import EngineThread
from paged_backend.executor import runner as runner_module
from paged_backend.kernels.cpu import _cpu
from paged_backend.kernels.cpu.recorder import CompiledStep
from paged_backend.sampling.sampler import sample


@dataclass(frozen=True, slots=True)
class StepTimes:
    """One step; times in seconds.

    Attributes:
        start_s: by `time.perf_counter`.
        period_s: to the start of the next step, less the probe's own time: the step with all that surrounds it. The
            step's own time where the engine had nothing to do after it.
        plan_s, commit_s: the scheduler's.
        inputs_s: tensors from the plan.
        forward_s: the model, from its inputs to the logits.
        sample_s: from the logits to tokens.
        native_s: of the whole step, what C++ took: the compiled step's operations and the drawing of tokens. 0 where
            the engine runs without the C++ kernels.
        num_sequences, num_tokens: in the plan.
        num_reserved_slots, num_empty_slots: slots of the cache's used blocks after the step, and those without a token.
    """

    start_s: float
    period_s: float
    plan_s: float
    inputs_s: float
    forward_s: float
    sample_s: float
    commit_s: float
    native_s: float
    num_sequences: int
    num_tokens: int
    num_reserved_slots: int
    num_empty_slots: int

    @property
    def scheduling_s(self) -> float:
        """Scheduler and bookkeeping: plan, inputs and commit."""
        return self.plan_s + self.inputs_s + self.commit_s

    @property
    def rest_s(self) -> float:
        """What requests gained, text, metrics, streams and the engine's loop."""
        return self.period_s - self.scheduling_s - self.forward_s - self.sample_s

    @property
    def is_decode(self) -> bool:
        """Whether every sequence computed one token."""
        return self.num_tokens == self.num_sequences


_PARTS: Final = ("plan", "inputs", "forward", "sample", "commit", "native")
"""What a step is timed in: StepTimes has a field of seconds for each."""


class Probe:
    """Records the steps of an engine; use it in `with`. The engine must be idle when it begins and when it ends.

    Attributes:
        own_s: what the probe itself took between steps, in seconds.
    """

    def __init__(self, client: EngineClient) -> None:
        self.own_s = 0.0
        self._core = core_of(client)
        self._kv: Any = self._core._kv
        self._parts: defaultdict[str, float] = defaultdict(float)
        self._plan: Any = None
        self._rows: list[tuple[float, float, float, dict[str, float], int, int, int, int]] = []
        self._patches: list[Any] = []

    def __enter__(self) -> Probe:
        core, runner = self._core, self._core._executor._runner
        scheduler = core._scheduler
        self._replace(scheduler, "plan", self._planning(scheduler.plan))
        self._replace(scheduler, "commit", self._timed("commit", scheduler.commit))
        self._replace(runner._inputs, "build", self._timed("inputs", runner._inputs.build))
        self._replace(runner_module, "sample", self._timed("sample", sample))
        self._program: Any = None
        if isinstance(runner._step, CompiledStep):
            self._program = runner._step._program
            runner._step.start_timing()
        self._replace(_cpu, "sample", self._timed("native", _cpu.sample))
        self._replace(runner, "_step", self._timed("forward", runner._step))
        self._replace(core, "step", self._stepping(core.step))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in reversed(self._patches):
            one.stop()
        if self._program is not None:
            self._program.timed = False

    def steps(self, max_gap_s: float = 0.01) -> list[StepTimes]:
        """What was recorded.

        Args:
            max_gap_s: seconds between two steps from which on the engine is taken to have been idle.
        """
        found = []
        for index, (start_s, end_s, left_s, parts, num_sequences, num_tokens, reserved, empty) in enumerate(self._rows):
            period_s = end_s - start_s
            if index + 1 < len(self._rows) and (gap_s := self._rows[index + 1][0] - left_s) < max_gap_s:
                period_s += gap_s
            found.append(
                StepTimes(
                    start_s=start_s,
                    period_s=period_s,
                    num_sequences=num_sequences,
                    num_tokens=num_tokens,
                    num_reserved_slots=reserved,
                    num_empty_slots=empty,
                    **{f"{name}_s": parts.get(name, 0.0) for name in _PARTS},
                )
            )
        return found

    def _replace(self, owner: Any, name: str, value: Callable[..., Any]) -> None:
        one = patch.object(owner, name, value)
        one.start()
        self._patches.append(one)

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        parts = self._parts

        def call(*args: Any, **kwargs: Any) -> Any:
            start_s = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                parts[name] += time.perf_counter() - start_s

        return call

    def _program_s(self) -> float:
        """Seconds in the compiled step's operations so far."""
        return 0.0 if self._program is None else sum(self._program.seconds.values())

    def _planning(self, function: Callable[..., Any]) -> Callable[..., Any]:
        timed = self._timed("plan", function)

        def call() -> Any:
            self._plan = timed()
            return self._plan

        return call

    def _stepping(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call() -> Any:
            self._parts.clear()
            self._plan = None
            native_s = self._program_s()
            start_s = time.perf_counter()
            items = function()
            end_s = time.perf_counter()
            plan = self._plan
            self._parts["native"] += self._program_s() - native_s
            if plan is not None and plan.sequences:
                reserved = self._kv.stats().num_used_blocks * self._kv.block_size
                empty = self._kv.num_empty_slots()
                counts = (len(plan.sequences), plan.num_tokens, reserved, empty)
                left_s = time.perf_counter()
                self.own_s += left_s - end_s
                self._rows.append((start_s, end_s, left_s, dict(self._parts), *counts))
            return items

        return call


def core_of(client: EngineClient) -> Any:
    """The core of an engine of this process."""
    assert isinstance(client._engine, EngineThread)
    return client._engine.core


def runtime_of(client: EngineClient) -> _cpu.Runtime:
    """The engine's own threads in C++; such as it would have where it runs without them."""
    runtime = getattr(core_of(client)._executor._runner._kernels, "_runtime", None)
    return runtime if isinstance(runtime, _cpu.Runtime) else _cpu.Runtime(num_cores())


def median_of(steps: Sequence[StepTimes], value: Callable[[StepTimes], float]) -> float:
    """The median over steps; NaN of none."""
    return statistics.median(map(value, steps)) if steps else float("nan")


def kv_waste(steps: Sequence[StepTimes]) -> float:
    """Empty slots over reserved ones, each averaged over the run's time; NaN where nothing was reserved."""
    reserved = sum(step.num_reserved_slots * step.period_s for step in steps)
    return sum(step.num_empty_slots * step.period_s for step in steps) / reserved if reserved else float("nan")
