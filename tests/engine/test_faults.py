"""A fault inside a kernel, half way through a layer: its step's requests end, the others go on, no block is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paged_backend.errors import RequestFailedError
from paged_backend.kernels.reference.kernels import ReferenceKernels
from paged_backend.sampling_params import SamplingParams
from tests.engine_driver import Collector, new_core, new_request, run_core
from tests.tiny_models import make_tiny_model

PROMPTS = [list(range(3 + i, 12 + 2 * i)) for i in range(6)]
PARAMS = [SamplingParams(max_tokens=10, seed=i, n=1 + i % 2, temperature=0.8, ignore_eos=True) for i in range(6)]
ENGINE: dict[str, Any] = {
    "kernel_backend": "reference",
    "block_size": 4,
    "max_model_len": 64,
    "num_gpu_blocks_override": 40,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 16,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("model"))


def break_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Makes the so-manieth call of the attention raise, and no other."""
    attend: Callable[..., Any] = ReferenceKernels.paged_attention
    calls = 0

    def attend_or_raise(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise RuntimeError("the kernel broke")
        return attend(*args, **kwargs)

    monkeypatch.setattr(ReferenceKernels, "paged_attention", attend_or_raise)


@pytest.mark.parametrize("number", [2, 7, 20])
@pytest.mark.parametrize("policy", ["fcfs", "fair"])
def test_a_broken_kernel_costs_its_step_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, policy: str
) -> None:
    alone = [run_core(new_core(folder, **ENGINE), [one])[0] for one in zip(PROMPTS, PARAMS, strict=True)]
    core = new_core(folder, scheduling_policy=policy, **ENGINE)
    collector = Collector()
    for i, (prompt, params) in enumerate(zip(PROMPTS, PARAMS, strict=True)):
        request = new_request(f"r{i}", prompt, params)
        collector.expect(request)
        core.add(request)
    break_at(monkeypatch, number)
    while core.has_work():
        collector.take(core.step())
        core._scheduler.check_invariants()
    assert 1 <= len(collector.errors) < len(PROMPTS)
    assert all(isinstance(error, RequestFailedError) for error in collector.errors.values())
    assert sorted(collector.finished) == [f"r{i}" for i in range(len(PROMPTS))]
    for i, whole in enumerate(alone):
        if f"r{i}" not in collector.errors:
            samples = collector.outputs[f"r{i}"].outputs
            assert [sample.token_ids for sample in samples] == [sample.token_ids for sample in whole.outputs]
    stats = core.stats()
    assert (stats.num_used_blocks, stats.num_running, stats.num_waiting) == (0, 0, 0)
    # What failed may be sent again, and finds nothing half written.
    for request_id in collector.errors:
        index = int(request_id[1:])
        (again,) = run_core(core, [(PROMPTS[index], PARAMS[index])])
        assert [s.token_ids for s in again.outputs] == [s.token_ids for s in alone[index].outputs]
