"""With async_scheduling the next step is launched before the last one is read, and nobody can tell."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from torch import Tensor

from paged_backend.engine.core import EngineCore
from paged_backend.engine.tokenizer import Tokenizer
from paged_backend.errors import InvalidRequestError, RequestFailedError
from paged_backend.executor.device import CpuDevice
from paged_backend.executor.executor import Executor
from paged_backend.kernels.cpu.kernels import CpuKernels
from paged_backend.kernels.sampling_batch import LaunchedSamples, SampledBatch, SamplingBatch
from paged_backend.outputs import RequestOutput
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import StepPlan
from tests.engine_driver import Collector, new_core, new_request

MODEL = Path(__file__).resolve().parents[2] / "model_store" / "paged-tiny"
TOKENIZER = Tokenizer.load(MODEL)
PROMPT = TOKENIZER.encode("Once upon a time there was a little girl who")

PLAIN: list[dict[str, Any]] = [
    {},
    {"temperature": 0.9, "seed": 5, "top_p": 0.9},
    {"temperature": 1.2, "seed": 6, "logprobs": 2},
    {"temperature": 1.0, "seed": 7, "min_tokens": 6, "stop_token_ids": list(range(0, 2560, 3))},
    {"temperature": 1.0, "seed": 8, "stop": ["e", "ou"], "min_tokens": 3},
    {"temperature": 0.7, "seed": 9, "logit_bias": {40: 3.0}},
    {"max_tokens": 1},
    {"temperature": 1.0, "seed": 10, "repetition_detection": {"max_pattern_size": 3, "min_count": 2}},
    {"temperature": 0.8, "seed": 12, "presence_penalty": 0.7, "frequency_penalty": 0.3, "logprobs": 1},
    {"repetition_penalty": 1.05, "min_tokens": 4, "logit_bias": {40: 2.0}},
    {"temperature": 1.1, "seed": 15, "repetition_penalty": 1.3, "presence_penalty": -0.5, "top_k": 30},
    {"allowed_token_ids": list(range(40, 400)), "temperature": 1.0, "seed": 14, "frequency_penalty": 0.2},
    {"temperature": 0.8, "seed": 16, "bad_words_token_ids": [[40], [300], [13]]},
    {"temperature": 0.8, "seed": 17, "logprob_token_ids": [3, 2000], "repetition_penalty": 0.9},
    {"temperature": 0.0, "logprob_token_ids": [5], "logprobs": 3},
]
"""What can be drawn where the logits are."""

ENDING = ("stop", "stop_token_ids", "repetition_detection", "max_tokens")
"""What may end a request earlier than it says."""


def softened(prompt: list[int], output: list[int], logits: Tensor) -> Tensor:
    return logits / (1 + len(output) % 3)


NEEDS_HOST: list[dict[str, Any]] = [
    {"temperature": 1.0, "seed": 11, "n": 3},
    {"temperature": 1.0, "seed": 18, "n": 2, "repetition_penalty": 1.2, "frequency_penalty": 0.4},
    {"temperature": 0.8, "seed": 13, "bad_words": ["the little", "was"], "presence_penalty": 0.5},
    {"use_beam_search": True, "n": 2, "max_tokens": 6},
    {"prompt_logprobs": 1, "max_tokens": 5},
    {"logits_processors": [softened], "temperature": 1.0, "seed": 19, "repetition_penalty": 1.1},
]


def random_requests(rng: Random, kinds: Sequence[dict[str, Any]], count: int) -> list[tuple[list[int], SamplingParams]]:
    requests = []
    for _ in range(count):
        params = {"temperature": 0.0, "max_tokens": rng.randint(1, 24), **rng.choice(kinds)}
        params["min_tokens"] = min(params.get("min_tokens", 0), params["max_tokens"])
        if "bad_words" in params:
            words = params.pop("bad_words")
            params["bad_words"] = words
            params["bad_words_token_ids"] = [TOKENIZER.encode(word) for word in words]
        prompt = PROMPT * rng.randint(1, 3) + [rng.randrange(20, 2000) for _ in range(rng.randint(0, 20))]
        requests.append((prompt[rng.choice([0, 0, 3]) :], SamplingParams(**params)))
    return requests


def live(
    core: EngineCore,
    requests: Sequence[tuple[list[int], SamplingParams]],
    aborts: dict[int, int] | None = None,
) -> tuple[dict[str, RequestOutput], Collector]:
    """Runs requests, one more after every second step, and aborts some so many steps after they came."""
    collector = Collector(TOKENIZER)
    waiting = list(enumerate(requests))
    leave: dict[int, list[str]] = {}
    for step in range(5000):
        for request_id in leave.pop(step, ()):
            collector.take(core.abort(new_request(request_id, [1], SamplingParams()).key))
        if waiting and step % 2 == 0:
            number, (prompt, params) = waiting.pop(0)
            request = new_request(f"r{number}", prompt, params)
            collector.expect(request)
            core.add(request)
            if aborts and number in aborts:
                leave.setdefault(step + 1 + aborts[number], []).append(request.request_id)
        if not waiting and not core.has_work():
            break
        collector.take(core.step())
    assert sorted(collector.finished) == sorted(collector.outputs), "a request without its end"
    core._scheduler.check_invariants()
    assert core._kv.num_free_blocks == core._kv.num_blocks
    return collector.outputs, collector


def told(output: RequestOutput) -> list[Any]:
    return [
        (sample.token_ids, sample.text, sample.finish_reason, sample.stop_reason, str(sample.logprobs))
        for sample in output.outputs
    ] + [str(output.prompt_logprobs)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kinds", [PLAIN, PLAIN + NEEDS_HOST], ids=["plain", "all"])
@pytest.mark.parametrize(
    "tight", [{}, {"num_gpu_blocks_override": 12, "kv_offloading_size": 0.01}], ids=["roomy", "tight"]
)
def test_the_same_to_the_bit(seed: int, kinds: list[dict[str, Any]], tight: dict[str, Any]) -> None:
    rng = Random(seed)
    requests = random_requests(rng, kinds, 14)
    sizes = {"max_num_seqs": 6, "max_num_batched_tokens": 40, "max_model_len": 192}
    found = []
    for overlaps in (False, True):
        core = new_core(MODEL, TOKENIZER, async_scheduling=overlaps, device="cpu", **sizes, **tight)
        launched = note_launches(core)
        outputs, _ = live(core, requests)
        found.append({name: told(output) for name, output in outputs.items()})
        if tight and overlaps and kinds is PLAIN and seed == 0:
            assert core.stats().num_preemptions
        assert (launched() > 0) == overlaps
        core.close()
    assert found[0] == found[1]


def note_launches(core: EngineCore) -> Callable[[], int]:
    """Counts the steps that are launched while another one has not been read."""
    executor = core._executor
    launch = executor.launch
    unread, early = [0], [0]

    def noted(plan: StepPlan) -> Any:
        early[0] += unread[0] > 0
        unread[0] += 1
        pending = launch(plan)
        result = pending.result

        class Noted:
            began_s = pending.began_s

            def result(self) -> Any:
                unread[0] -= 1
                return result()

        return Noted()

    executor.launch = noted  # type: ignore[method-assign, assignment]
    return lambda: early[0]


def test_a_plain_batch_never_waits() -> None:
    """Each step but the first is launched before the one before it is read, whatever they draw for."""
    core = new_core(MODEL, TOKENIZER, async_scheduling=True, device="cpu", max_num_seqs=16, max_model_len=128)
    early = note_launches(core)
    kinds = [{name: value for name, value in kind.items() if name not in ENDING} for kind in PLAIN]
    live(core, [(PROMPT, SamplingParams(**{**kind, "ignore_eos": True, "max_tokens": 36})) for kind in kinds])
    assert core.stats().num_steps == early() + 1


def test_the_device_works_while_the_host_reads() -> None:
    """The second step is computed though nobody has asked for the first: its token comes from the first's memory."""
    core = new_core(MODEL, async_scheduling=True, device="cpu", max_model_len=128)
    core.add(new_request("a", PROMPT, SamplingParams(max_tokens=4, ignore_eos=True)))
    scheduler, executor = core._scheduler, core._executor
    first = executor.launch(scheduler.plan())
    ahead = scheduler.plan_ahead()
    assert ahead is not None
    second = executor.launch(ahead)
    later = second.result().token_ids
    scheduler.commit(first.result())
    scheduler.commit(second.result())
    assert later == second.result().token_ids
    core.close()


@pytest.mark.parametrize("seed", range(3))
def test_aborts_end_once_and_touch_nobody(seed: int) -> None:
    rng = Random(seed)
    requests = random_requests(rng, PLAIN + NEEDS_HOST, 12)
    aborts = {number: rng.randint(0, 6) for number in range(0, 12, 3)}
    sizes = {"max_num_seqs": 6, "max_num_batched_tokens": 40, "max_model_len": 192, "num_gpu_blocks_override": 24}
    core = new_core(MODEL, TOKENIZER, async_scheduling=False, device="cpu", **sizes)
    alone, _ = live(core, requests)
    core.close()
    core = new_core(MODEL, TOKENIZER, async_scheduling=True, device="cpu", **sizes)
    outputs, _ = live(core, requests, aborts)
    core.close()
    for number in range(len(requests)):
        name = f"r{number}"
        for whole, part in zip(alone[name].outputs, outputs[name].outputs, strict=True):
            if part.finish_reason != "abort":
                assert (whole.token_ids, whole.text) == (part.token_ids, part.text)
            elif not requests[number][1].use_beam_search:
                assert whole.token_ids[: len(part.token_ids)] == part.token_ids


@pytest.mark.parametrize("steps", range(3))
@pytest.mark.parametrize("kind", [{"use_beam_search": True, "n": 2}, {"n": 3, "temperature": 1.0, "seed": 1}])
def test_who_leaves_after_being_planned_leaves_its_step_to_the_host(kind: dict[str, Any], steps: int) -> None:
    """A step that was launched to be drawn by the host draws nothing on the device, also when its reason is gone."""
    found = []
    for overlaps in (False, True):
        core = new_core(MODEL, async_scheduling=overlaps, device="cpu", max_num_seqs=6, max_model_len=192)
        collector = Collector(TOKENIZER)
        stays = new_request("stays", PROMPT, SamplingParams(max_tokens=12, ignore_eos=True))
        leaves = new_request("leaves", PROMPT[2:], SamplingParams(max_tokens=12, **kind))
        for request in (stays, leaves):
            collector.expect(request)
        core.add(stays)
        for _ in range(3):
            collector.take(core.step())
        core.add(leaves)
        for _ in range(steps):
            collector.take(core.step())
        collector.take(core.abort(leaves.key))
        while core.has_work():
            collector.take(core.step())
        core.close()
        found.append(told(collector.outputs["stays"]))
    assert found[0] == found[1]


@pytest.mark.parametrize("number", [1, 2, 5, 9])
def test_a_step_that_fails_ends_those_that_were_in_it(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step behind it, already launched, is theirs in vain, and everybody else's as ever."""
    requests = [
        (PROMPT * (1 + i % 2), SamplingParams(max_tokens=6, temperature=0.8, seed=i, presence_penalty=0.9 * (i % 3)))
        for i in range(6)
    ]
    core = new_core(MODEL, TOKENIZER, async_scheduling=False, device="cpu", max_num_seqs=3, max_model_len=192)
    alone, _ = live(core, requests)
    core.close()
    core = new_core(MODEL, TOKENIZER, async_scheduling=True, device="cpu", max_num_seqs=3, max_model_len=192)
    order = core._executor._device.order
    count = [0]

    def order_or_break(work: Callable[[], Any]) -> Any:
        count[0] += 1
        if count[0] != number:
            return order(work)

        def broken() -> Any:
            raise RuntimeError("the device broke")

        return order(broken)

    monkeypatch.setattr(core._executor._device, "order", order_or_break)
    outputs, collector = live(core, requests)
    core.close()
    assert 1 <= len(collector.errors) <= 3
    assert all(isinstance(error, RequestFailedError) for error in collector.errors.values())
    for name in outputs.keys() - collector.errors.keys():
        assert told(outputs[name]) == told(alone[name])


@pytest.mark.parametrize("kind", [{}, {"frequency_penalty": 0.5}, {"allowed_token_ids": list(range(9, 99))}])
def test_logits_that_are_no_numbers_end_their_request(kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be drawn is no token of the next step's, which is launched already."""
    sample = CpuKernels.sample
    steps = [0]

    def spoiled(self: CpuKernels, logits: Any, batch: SamplingBatch) -> SampledBatch:
        steps[0] += not batch.given
        if steps[0] == 4 and not batch.given:
            logits[0] = float("nan")
        return sample(self, logits, batch)

    requests = [(PROMPT, SamplingParams(max_tokens=8, temperature=0.8, seed=i, **kind)) for i in range(3)]
    core = new_core(MODEL, async_scheduling=False, device="cpu", max_model_len=128)
    alone, _ = live(core, requests)
    core.close()
    monkeypatch.setattr(CpuKernels, "sample", spoiled)
    core = new_core(MODEL, async_scheduling=True, device="cpu", max_model_len=128)
    outputs, collector = live(core, requests)
    core.close()
    (error,) = collector.errors.values()
    assert isinstance(error, RequestFailedError)
    for name in outputs.keys() - collector.errors.keys():
        assert told(outputs[name]) == told(alone[name])


@pytest.mark.parametrize("overlaps", [False, True])
def test_parameters_that_leave_nothing_are_their_requests_fault(overlaps: bool) -> None:
    nothing = {"allowed_token_ids": [40, 41], "bad_words_token_ids": [[41], [40]]}
    requests = [(PROMPT, SamplingParams(max_tokens=5, ignore_eos=True, **kind)) for kind in ({}, nothing, {})]
    core = new_core(MODEL, async_scheduling=overlaps, device="cpu", max_model_len=128)
    early = note_launches(core)
    _, collector = live(core, requests)
    core.close()
    assert collector.errors.keys() == {"r1"} and (early() > 0) == overlaps
    assert isinstance(collector.errors["r1"], InvalidRequestError)
    assert "leave no token" in str(collector.errors["r1"])


def test_a_row_that_the_kernels_refuse_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = CpuKernels.launch_sample

    def picky(self: CpuKernels, logits: Any, batch: SamplingBatch) -> LaunchedSamples:
        top_p = [0.0 if seeds == (1,) else 1.0 for seeds in batch.seeds]
        return launch(self, logits, replace(batch, top_p=top_p))

    kinds: list[dict[str, Any]] = [{"logprobs": 0}, {"logprobs": 1}, {"presence_penalty": 1.0}]
    requests = [(PROMPT, SamplingParams(max_tokens=5, temperature=0.8, seed=i, **kind)) for i, kind in enumerate(kinds)]
    core = new_core(MODEL, async_scheduling=False, device="cpu", max_model_len=128)
    alone, _ = live(core, requests)
    core.close()
    monkeypatch.setattr(CpuKernels, "launch_sample", picky)
    core = new_core(MODEL, async_scheduling=True, device="cpu", max_model_len=128)
    outputs, collector = live(core, requests)
    core.close()
    assert collector.errors.keys() == {"r1"}
    for name in ("r0", "r2"):
        assert told(outputs[name]) == told(alone[name])


def test_work_is_done_in_order_and_raises_where_it_is_asked_for() -> None:
    device = CpuDevice(overlaps=True)
    gate, done = threading.Event(), []

    def slow() -> int:
        gate.wait(10)
        done.append("slow")
        return 1

    def broken() -> int:
        done.append("broken")
        raise ValueError("no")

    first, second, third = device.order(slow), device.order(broken), device.order(lambda: done.append("last"))
    assert done == []
    gate.set()
    third.result()
    assert done == ["slow", "broken", "last"] and first.result() == 1
    with pytest.raises(ValueError, match="no"):
        second.result()
    device.close()


def test_the_cpu_does_not_overlap_by_itself() -> None:
    core = new_core(MODEL, device="cpu", max_model_len=128)
    executor: Executor = core._executor
    assert not executor.async_scheduling
    core.close()
