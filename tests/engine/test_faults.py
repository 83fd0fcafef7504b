"""A fault in a kernel: its step's requests end, the others go on, no block is lost, and the same bits come after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paged_backend.engine.core import EngineCore
from paged_backend.errors import KernelError, RequestFailedError
from paged_backend.kernels.reference.kernels import ReferenceKernels
from paged_backend.outputs import RequestOutput
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import StepPlan, StepResult
from tests.engine_driver import Collector, new_core, new_request, run_core
from tests.tiny_models import VOCAB_SIZE, make_tiny_model

PROMPTS = [list(range(3 + i, 12 + 2 * i)) for i in range(6)]
PARAMS = [
    SamplingParams(max_tokens=10, seed=i, n=1 + i % 2, temperature=0.8, ignore_eos=True, logprobs=1) for i in range(6)
]
ENGINE: dict[str, Any] = {
    "block_size": 4,
    "max_model_len": 64,
    "num_gpu_blocks_override": 40,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 16,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("model"))


def a_token_that_is_none(plan: StepPlan) -> StepPlan:
    """The recorded step, in C++, refuses to look it up."""
    first, *others = plan.sequences
    return replace(plan, sequences=(replace(first, token_ids=[VOCAB_SIZE] * len(first.token_ids)), *others))


def a_block_that_is_not_there(plan: StepPlan) -> StepPlan:
    """So does it with the last sequence's blocks."""
    *others, last = plan.sequences
    return replace(plan, sequences=(*others, replace(last, block_table=[10**6] * len(last.block_table))))


def a_copy_from_nowhere(plan: StepPlan) -> StepPlan:
    """Copies of blocks come before the recorded step."""
    return replace(plan, block_copies=(*plan.block_copies, (10**6, 0)))


FAULTS = [a_token_that_is_none, a_block_that_is_not_there, a_copy_from_nowhere]


def break_cpp(
    core: EngineCore,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[StepPlan], StepPlan],
    number: int,
    is_computed: bool,
) -> list[KernelError]:
    """Gives the C++ kernels a wrong argument in the so-manieth step, and in no other; returns what they raised.

    Args:
        is_computed: before that, the step is computed as it is: all of its keys and values are there, and its tokens
            are lost.
    """
    run: Callable[[StepPlan], StepResult] = core._executor.run
    num_steps, raised = 0, []

    def run_or_break(plan: StepPlan) -> StepResult:
        nonlocal num_steps
        num_steps += 1
        if num_steps != number:
            return run(plan)
        if is_computed:
            run(plan)
        with pytest.raises(KernelError) as error:
            run(fault(plan))
        raised.append(error.value)
        raise error.value

    monkeypatch.setattr(core._executor, "run", run_or_break)
    return raised


def break_reference(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Makes the so-manieth call of the reference's attention raise, and no other: half way through a layer."""
    attend: Callable[..., Any] = ReferenceKernels.paged_attention
    calls = 0

    def attend_or_raise(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise RuntimeError("the kernel broke")
        return attend(*args, **kwargs)

    monkeypatch.setattr(ReferenceKernels, "paged_attention", attend_or_raise)


def check_the_rest(core: EngineCore, alone: list[RequestOutput]) -> list[str]:
    """Runs all requests on a core that breaks once, then those that it broke again; whom it broke."""
    collector = Collector()
    for i, (prompt, params) in enumerate(zip(PROMPTS, PARAMS, strict=True)):
        request = new_request(f"r{i}", prompt, params)
        collector.expect(request)
        core.add(request)
    while core.has_work():
        collector.take(core.step())
        core._scheduler.check_invariants()
    assert 1 <= len(collector.errors) < len(PROMPTS)
    assert all(isinstance(error, RequestFailedError) for error in collector.errors.values())
    assert sorted(collector.finished) == [f"r{i}" for i in range(len(PROMPTS))]
    for i, whole in enumerate(alone):
        if f"r{i}" not in collector.errors:
            check_same(core, collector.outputs[f"r{i}"], whole)
    stats = core.stats()
    assert (stats.num_used_blocks, stats.num_running, stats.num_waiting) == (0, 0, 0)
    # What failed may be sent again, and finds nothing half written.
    for request_id in collector.errors:
        index = int(request_id[1:])
        (again,) = run_core(core, [(PROMPTS[index], PARAMS[index])])
        check_same(core, again, alone[index])
    return list(collector.errors)


def check_same(core: EngineCore, output: RequestOutput, alone: RequestOutput) -> None:
    """The same tokens; of the C++ kernels also the same logprobs, to the bit."""
    assert [sample.token_ids for sample in output.outputs] == [sample.token_ids for sample in alone.outputs]
    if core._executor.kernel_report["linear"].implementation == "cpu":
        assert output.outputs == alone.outputs


def run_alone(folder: Path, kernel_backend: str) -> list[RequestOutput]:
    """Every request from an engine of its own."""
    requests = zip(PROMPTS, PARAMS, strict=True)
    return [run_core(new_core(folder, kernel_backend=kernel_backend, **ENGINE), [one])[0] for one in requests]


@pytest.fixture(scope="module")
def alone_in_cpp(folder: Path) -> list[RequestOutput]:
    return run_alone(folder, "cpu")


@pytest.mark.parametrize("is_computed", [False, True])
@pytest.mark.parametrize("number", [1, 4, 9])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_cpp_kernel_that_raises_costs_its_step_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, alone_in_cpp: Any, fault: Any, number: int, is_computed: bool
) -> None:
    core = new_core(folder, kernel_backend="cpu", num_threads=2, **ENGINE)
    raised = break_cpp(core, monkeypatch, fault, number, is_computed)
    check_the_rest(core, alone_in_cpp)
    assert len(raised) == 1


def test_a_draw_that_cpp_refuses_costs_its_request_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, alone_in_cpp: Any
) -> None:
    """The others of its step have their tokens from it all the same."""
    core = new_core(folder, kernel_backend="cpu", num_threads=2, **ENGINE)
    run = core._executor.run
    widths: list[int] = []

    def run_with_a_wrong_seed(plan: StepPlan) -> StepResult:
        tasks = [line.sampling for line in plan.sequences if line.sampling is not None]
        if len(tasks) < 3 or widths:
            return run(plan)
        widths.append(len(tasks))
        tasks[1].seeds = ("none",) * len(tasks[1].seeds)  # type: ignore[assignment]
        return run(plan)

    monkeypatch.setattr(core._executor, "run", run_with_a_wrong_seed)
    assert len(check_the_rest(core, alone_in_cpp)) == 1
    assert widths


@pytest.mark.parametrize("number", [2, 7, 20])
@pytest.mark.parametrize("policy", ["fcfs", "fair"])
def test_a_broken_kernel_costs_its_step_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, policy: str
) -> None:
    alone = run_alone(folder, "reference")
    core = new_core(folder, kernel_backend="reference", scheduling_policy=policy, **ENGINE)
    break_reference(monkeypatch, number)
    check_the_rest(core, alone)
