"""The engine's door: every accepted request gets exactly one end, whatever happens to it or to the engine."""

from __future__ import annotations

import asyncio
import gc
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from paged_backend.config import EngineConfig
from paged_backend.engine.client import EngineClient
from paged_backend.errors import (
    EngineUnavailableError,
    InvalidRequestError,
    QueueFullError,
    RequestFailedError,
)
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import StepPlan
from tests.engine.fake_executor import EOS, VOCAB_SIZE, FakeExecutor, next_token

TIMEOUT_S = 20


def params(max_tokens: int | None = 8, **kwargs: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, seed=0, **kwargs)


def expected(prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens, 0))
    return tokens[len(prompt) :]


class Gate:
    """Holds the engine inside a step until it is opened."""

    def __init__(self, executor: FakeExecutor) -> None:
        self.inside = threading.Event()
        self._open = threading.Event()
        executor.before_run = self._wait

    def open(self) -> None:
        self._open.set()

    def _wait(self, plan: StepPlan) -> None:
        self.inside.set()
        assert self._open.wait(TIMEOUT_S)


@pytest.fixture
def executor() -> FakeExecutor:
    return FakeExecutor()


@pytest.fixture
def client(executor: FakeExecutor) -> Iterator[EngineClient]:
    config = EngineConfig.from_args(max_num_seqs=4, max_num_batched_tokens=16, max_num_queued_reqs=2)
    client = EngineClient(config, cast(Any, executor), tokenizer=None)
    yield client
    executor.before_run = lambda plan: None
    client.shutdown()


def test_sync_and_async_readers_get_the_same(client: EngineClient) -> None:
    prompts = [[5, 6, 7], [8], list(range(3, 40))]
    sync = [client.submit(prompt, params()).collect().outputs[0] for prompt in prompts]

    async def read() -> list[Any]:
        streams = [client.submit(prompt, params()) for prompt in prompts]
        return await asyncio.gather(*(stream.collect_async() for stream in streams))

    for prompt, one, other in zip(prompts, sync, asyncio.run(read()), strict=True):
        assert one.token_ids == other.outputs[0].token_ids == expected(prompt, 8)
        assert one.finish_reason == other.outputs[0].finish_reason == "length"


def test_deltas_come_one_by_one_and_end_once(client: EngineClient) -> None:
    deltas = list(client.submit([5, 6], params(5)))
    assert [len(delta.outputs[0].token_ids) for delta in deltas] == [1] * 5
    assert [delta.finished for delta in deltas] == [False] * 4 + [True]


def test_max_tokens_none_fills_the_context(client: EngineClient) -> None:
    output = client.submit([5] * 200, params(None)).collect().outputs[0]
    assert (len(output.token_ids), output.finish_reason) == (FakeExecutor.max_model_len - 200, "length")


def test_a_short_request_overtakes_a_long_one(client: EngineClient, executor: FakeExecutor) -> None:
    gate = Gate(executor)
    long = client.submit([5], params(100))
    assert gate.inside.wait(TIMEOUT_S)
    short = client.submit([6], params(3))  # submitted while the long one's first step is being computed
    gate.open()
    assert short.collect().outputs[0].token_ids == expected([6], 3)
    assert long.collect().outputs[0].token_ids == expected([5], 100)
    assert len(executor.plans) == 100, "the short request's steps were not shared"
    shared = [step for step, plan in enumerate(executor.plans) if len(plan.sequences) == 2]
    assert shared == [1, 2, 3], "the short request did not join at once, or did not leave first"


def test_abort_ends_the_stream_and_frees_everything(client: EngineClient, executor: FakeExecutor) -> None:
    gate = Gate(executor)
    running, other = client.submit([5], params(50)), client.submit([6], params(4))
    assert gate.inside.wait(TIMEOUT_S)
    running.abort()
    running.abort()
    client.abort("never heard of")
    gate.open()
    assert running.collect().outputs[0].finish_reason == "abort"
    assert other.collect().outputs[0].token_ids == expected([6], 4)
    assert client.drain(TIMEOUT_S)
    stats = client.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_used_blocks) == (0, 0, 0)


def test_a_failing_step_ends_its_requests_and_no_others(client: EngineClient, executor: FakeExecutor) -> None:
    def fail_on_nine(plan: StepPlan) -> None:
        if any(9 in sequence.token_ids for sequence in plan.sequences):
            raise RuntimeError("the kernel broke")

    executor.before_run = fail_on_nine
    with pytest.raises(RequestFailedError, match="try it again") as raised:
        client.submit([9], params()).collect()
    assert "kernel" not in str(raised.value)
    assert client.submit([30], params(3)).collect().outputs[0].token_ids == expected([30], 3)
    client.check_health()
    assert client.stats().num_used_blocks == 0


def test_a_dead_engine_ends_every_request(client: EngineClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise AssertionError("a bug of ours")

    monkeypatch.setattr(client._engine.core, "step", broken)
    with pytest.raises(EngineUnavailableError, match="died"):
        client.submit([5], params()).collect()
    with pytest.raises(EngineUnavailableError, match="died"):
        client.submit([5], params())
    with pytest.raises(EngineUnavailableError, match="died"):
        client.check_health()


def test_the_queue_is_bounded(client: EngineClient, executor: FakeExecutor) -> None:
    gate = Gate(executor)
    streams = [client.submit([5], params(3))]
    assert gate.inside.wait(TIMEOUT_S)
    with pytest.raises(QueueFullError, match="queue is full") as raised:
        streams.extend(client.submit([5], params(3)) for _ in range(20))
    assert raised.value.retry_after_s >= 1
    assert 4 + 2 <= len(streams) <= 4 + 2 + 1  # what can run, what may wait, and the one that runs already
    gate.open()
    assert all(stream.collect().outputs[0].finish_reason == "length" for stream in streams)
    client.submit([5], params(3)).collect()


def test_drain_refuses_new_requests_and_waits(client: EngineClient, executor: FakeExecutor) -> None:
    gate = Gate(executor)
    stream = client.submit([5], params(6))
    assert gate.inside.wait(TIMEOUT_S)
    assert not client.drain(0.01)
    with pytest.raises(EngineUnavailableError, match="draining"):
        client.submit([5], params())
    gate.open()
    assert client.drain(TIMEOUT_S)
    assert stream.collect().outputs[0].finish_reason == "length"


def test_shutdown_ends_what_is_left(client: EngineClient, executor: FakeExecutor) -> None:
    gate = Gate(executor)
    stream = client.submit([5], params(200))
    assert gate.inside.wait(TIMEOUT_S)
    threading.Timer(0.05, gate.open).start()
    client.shutdown()
    with pytest.raises(EngineUnavailableError):
        stream.collect()
    assert executor.closed.is_set()


def test_heartbeat_ages_only_with_work(client: EngineClient, executor: FakeExecutor) -> None:
    assert client.stats().heartbeat_age_s == 0
    gate = Gate(executor)
    stream = client.submit([5], params(2))
    assert gate.inside.wait(TIMEOUT_S)
    assert client.stats().heartbeat_age_s > 0
    with pytest.raises(EngineUnavailableError, match="no step"):
        client.check_health(stall_timeout_s=0.0)
    gate.open()
    stream.collect()
    assert client.drain(TIMEOUT_S)


def test_an_engine_that_is_stuck_is_given_up(client: EngineClient, executor: FakeExecutor) -> None:
    gate = Gate(executor)
    streams = [client.submit([5], params(9)) for _ in range(2)]
    ends: list[int] = []
    for stream in streams:
        stream.add_done_callback(ends.append)
    asked: list[BaseException] = []

    def ask() -> None:
        with pytest.raises(EngineUnavailableError) as raised:
            client.stats(kv_map=True)
        asked.append(raised.value)

    assert gate.inside.wait(TIMEOUT_S)
    asker = threading.Thread(target=ask)
    asker.start()
    while not client._desk._asked:
        time.sleep(0.001)
    client.give_up("It is stuck.")
    for stream in streams:
        with pytest.raises(EngineUnavailableError, match="It is stuck"):
            stream.collect()
    for refused in (lambda: client.submit([5], params(2)), client.check_health):
        with pytest.raises(EngineUnavailableError, match="It is stuck"):
            refused()
    asker.join(TIMEOUT_S)
    assert len(asked) == 1
    gate.open()  # it goes on, and is heard no more
    while client._engine.core.has_work():  # type: ignore[union-attr]
        time.sleep(0.001)
    assert len(ends) == 2
    client.give_up("Again.")
    with pytest.raises(EngineUnavailableError, match="It is stuck"):
        client.check_health()


def test_a_closed_event_loop_aborts_its_requests(client: EngineClient, executor: FakeExecutor) -> None:
    gate = Gate(executor)

    async def leave() -> None:
        stream = client.submit([5], params(200))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(stream.__anext__(), 0.05)

    asyncio.run(leave())
    gate.open()
    other = client.submit([6], params(2))
    assert len(other.collect().outputs[0].token_ids) == 2
    client.shutdown()


@pytest.mark.parametrize(
    ("prompt", "sampling", "param"),
    [
        ([], {}, "prompt"),
        ([VOCAB_SIZE], {}, "prompt"),
        ([-1], {}, "prompt"),
        (["a"], {}, "prompt"),
        ("text", {}, "prompt"),
        ([5] * 256, {}, "prompt"),
        ([5], {"stop": ["x"]}, "stop"),
        ([5], {"n": 5}, "n"),
        ([5], {"stop_token_ids": [VOCAB_SIZE]}, "stop_token_ids"),
        ([5], {"allowed_token_ids": [VOCAB_SIZE]}, "allowed_token_ids"),
        ([5], {"logit_bias": {VOCAB_SIZE: 1.0}}, "logit_bias"),
        ([5], {"allowed_token_ids": [EOS, 7], "stop_token_ids": [7], "min_tokens": 1}, "allowed_token_ids"),
    ],
)
def test_what_cannot_be_served_is_refused_at_the_door(
    client: EngineClient, prompt: Any, sampling: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        client.submit(prompt, params(**sampling))
    assert raised.value.param == param
    assert client.stats().num_steps == 0


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"priority": None}, "priority"),
        ({"tenant": 5}, "tenant"),
        ({"cache_salt": 5}, "cache_salt"),
        ({"params": {"n": 1}}, "sampling_params"),
        ({"timeout_s": "1"}, "timeout_s"),
        ({"timeout_s": True}, "timeout_s"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": -1.0}, "timeout_s"),
        ({"timeout_s": math.nan}, "timeout_s"),
        ({"timeout_s": math.inf}, "timeout_s"),
    ],
)
def test_wrong_arguments_never_reach_the_engine(client: EngineClient, arguments: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        client.submit([5], **{"params": params(), **arguments})
    assert raised.value.param == param
    client.check_health()


def test_a_request_that_breaks_on_the_way_in_ends_alone(client: EngineClient, monkeypatch: pytest.MonkeyPatch) -> None:
    add = client._engine.core.add

    def add_but_nine(request: Any) -> None:
        if request.prompt_token_ids == [9]:
            raise RuntimeError("a bug of ours")
        add(request)

    monkeypatch.setattr(client._engine.core, "add", add_but_nine)
    streams = [client.submit(prompt, params(3)) for prompt in ([9], [30])]
    with pytest.raises(RequestFailedError):
        streams[0].collect()
    assert streams[1].collect().outputs[0].token_ids == expected([30], 3)


def test_the_end_is_counted_before_it_is_told(executor: FakeExecutor) -> None:
    """With no queue at all, one request after another is always admitted."""
    config = EngineConfig.from_args(max_num_seqs=1, max_num_batched_tokens=16, max_num_queued_reqs=0)
    client = EngineClient(config, cast(Any, executor), tokenizer=None)

    async def one_after_another() -> None:
        for _ in range(100):
            await client.submit([5], params(2)).collect_async()
            assert client.stats().num_running == 0

    asyncio.run(one_after_another())
    client.shutdown()


def test_a_late_abort_spares_the_next_owner_of_the_id(client: EngineClient, executor: FakeExecutor) -> None:
    first = client.submit([5], params(2), request_id="x")
    assert client.submit([6], params(20)).collect()  # the first is over by now, but nobody has read it
    gate = Gate(executor)
    second = client.submit([7], params(3), request_id="x")
    first.abort()
    gate.open()
    assert second.collect().outputs[0].finish_reason == "length"


def test_numbers_after_the_end_tell_the_truth(client: EngineClient, executor: FakeExecutor) -> None:
    gate = Gate(executor)
    client.submit([5], params(200))
    assert gate.inside.wait(TIMEOUT_S)
    threading.Timer(0.05, gate.open).start()
    client.shutdown()
    stats = client.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_used_blocks) == (0, 0, 0)
    text = client.metrics_text()
    assert 'vllm:num_requests_running{engine="0",model_name="paged-tiny"} 0.0' in text
    assert 'finished_reason="error",model_name="paged-tiny"} 1.0' in text


def test_an_abandoned_client_ends_its_thread(executor: FakeExecutor) -> None:
    client = EngineClient(EngineConfig(), cast(Any, executor), tokenizer=None)
    client.submit([5], params(3)).collect()
    del client
    gc.collect()
    assert executor.closed.wait(TIMEOUT_S)


def test_an_interpreter_that_ends_takes_the_engine_down_with_it() -> None:
    script = (
        "from paged_backend import LLM, SamplingParams\n"
        "llm = LLM(num_threads=1)\n"
        "for _ in range(8):\n"
        "    llm._client.submit([5], SamplingParams(max_tokens=1000, ignore_eos=True))\n"
        "raise SystemExit(3)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (3, "")


def test_request_ids_are_unique_while_live(client: EngineClient, executor: FakeExecutor) -> None:
    gate = Gate(executor)
    stream = client.submit([5], params(2), request_id="mine")
    assert stream.request_id == "mine"
    with pytest.raises(InvalidRequestError, match="in use") as raised:
        client.submit([5], params(2), request_id="mine")
    assert raised.value.param == "request_id"
    gate.open()
    stream.collect()
    client.drain(TIMEOUT_S)


def test_metrics_have_vllm_names(client: EngineClient) -> None:
    client.submit([5, 6, 7], params(4, n=2)).collect()
    text = client.metrics_text()
    labels = '{engine="0",model_name="paged-tiny"}'
    assert f"vllm:prompt_tokens_total{labels} 3.0" in text
    assert 'vllm:request_success_total{engine="0",finished_reason="length",model_name="paged-tiny"} 1.0' in text
    for name in ("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"):
        assert f"vllm:{name}_count{labels}" in text
    client.drain(TIMEOUT_S)
    assert f"vllm:generation_tokens_total{labels} 8.0" in client.metrics_text()
