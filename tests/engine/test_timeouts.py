"""A request with a deadline: refused where it cannot be met, ended with what it has when it passes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from paged_backend.config import EngineConfig
from paged_backend.engine.client import EngineClient
from paged_backend.errors import ConfigError, DeadlineError, InvalidRequestError, QueueFullError
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import StepPlan
from tests.engine.fake_executor import FakeExecutor

TIMEOUT_S = 20

Start = Callable[..., EngineClient]


def params(max_tokens: int, **kwargs: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, seed=0, **kwargs)


class Clock:
    """The time that the engine sees: a second for every step."""

    def __init__(self, executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
        self._executor = executor
        self.go = threading.Event()
        self.go.set()
        executor.before_run = self._hold
        for module in ("client", "core"):
            monkeypatch.setattr(f"paged_backend.engine.{module}.time", self)

    def monotonic(self) -> float:
        return 1000.0 + len(self._executor.plans)

    def _hold(self, plan: StepPlan) -> None:
        assert self.go.wait(TIMEOUT_S)


@pytest.fixture
def executor() -> FakeExecutor:
    return FakeExecutor()


@pytest.fixture
def clock(executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(executor, monkeypatch)


@pytest.fixture
def start(executor: FakeExecutor, clock: Clock) -> Iterator[Start]:
    clients: list[EngineClient] = []

    def build(**engine_args: Any) -> EngineClient:
        config = EngineConfig.from_args({"max_num_seqs": 1, "max_num_batched_tokens": 16, **engine_args})
        clients.append(EngineClient(config, cast(Any, executor), tokenizer=None))
        return clients[-1]

    yield build
    clock.go.set()
    for client in clients:
        client.shutdown()


def test_running_and_queued_requests_end_with_what_they_have(start: Start, clock: Clock) -> None:
    client = start()
    clock.go.clear()
    running = client.submit([5, 6], params(100), timeout_s=3.5)
    queued = client.submit([7, 8], params(100), timeout_s=3.5)
    patient = client.submit([9], params(3))
    clock.go.set()
    ended, never_began, served = (stream.collect().outputs[0] for stream in (running, queued, patient))
    assert (ended.finish_reason, ended.stop_reason) == ("abort", "timeout")
    assert len(ended.token_ids) == 4  # the step in which the deadline passes is still its own
    assert (never_began.finish_reason, never_began.stop_reason) == ("abort", "timeout")
    assert never_began.token_ids == []
    assert (served.finish_reason, len(served.token_ids)) == ("length", 3)
    assert client.drain(TIMEOUT_S)
    stats = client.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_waiting_tokens, stats.num_used_blocks) == (0, 0, 0, 0)
    assert 'finished_reason="abort",model_name="paged-tiny"} 2.0' in client.metrics_text()


def test_samples_that_have_ended_keep_their_end(start: Start) -> None:
    client = start(max_num_seqs=2)
    first, second = client.submit([5, 6], params(6, n=2)).collect().outputs
    end = next(token for token in second.token_ids if token not in first.token_ids)
    stream = client.submit([5, 6], params(100, n=2, stop_token_ids=[end]), timeout_s=5.5)
    cut_off, ended = stream.collect().outputs
    assert (ended.finish_reason, ended.stop_reason) == ("stop", end)
    assert (cut_off.finish_reason, cut_off.stop_reason) == ("abort", "timeout")
    assert cut_off.token_ids == first.token_ids


def test_in_time_it_is_as_if_there_was_no_deadline(start: Start) -> None:
    client = start()
    whole = client.submit([5], params(20)).collect().outputs[0]
    timed = client.submit([5], params(20), timeout_s=20).collect().outputs[0]
    assert (timed.token_ids, timed.finish_reason, timed.stop_reason) == (whole.token_ids, "length", None)


def test_the_servers_own_bounds(start: Start) -> None:
    client = start(default_timeout_s=2.5, max_timeout_s=50)
    assert client.submit([5], params(30)).collect().outputs[0].stop_reason == "timeout"
    assert client.submit([5], params(30), timeout_s=50).collect().outputs[0].finish_reason == "length"
    with pytest.raises(InvalidRequestError, match=r"timeout_s \(51\) exceeds 50 \(max_timeout_s\)") as raised:
        client.submit([5], params(30), timeout_s=51)
    assert raised.value.param == "timeout_s"


def test_the_most_is_the_default_where_none_is_set(start: Start) -> None:
    client = start(max_timeout_s=2.5)
    assert client.submit([5], params(30)).collect().outputs[0].stop_reason == "timeout"


@pytest.mark.parametrize(
    ("engine_args", "message"),
    [
        ({"default_timeout_s": 0}, "default_timeout_s must be a number of seconds above 0, got 0"),
        ({"max_timeout_s": "1"}, "max_timeout_s must be a number of seconds above 0, got '1'"),
        ({"default_timeout_s": float("nan")}, "default_timeout_s"),
        ({"max_timeout_s": 10**400}, "max_timeout_s must be a number of seconds"),
        ({"default_timeout_s": 3, "max_timeout_s": 2}, r"default_timeout_s \(3\) must not exceed max_timeout_s \(2\)"),
        ({"max_num_queued_tokens": -1}, "max_num_queued_tokens must be at least 0"),
        ({"shared_cache_salts": [""]}, "shared_cache_salts must be a string that is not empty"),
        ({"shared_cache_salts": 3}, "shared_cache_salts must be a list of strings"),
    ],
)
def test_wrong_bounds(engine_args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineConfig.from_args(engine_args)


def test_what_cannot_be_met_is_refused_at_once_and_counted(start: Start, clock: Clock) -> None:
    client = start()
    client.submit([5], params(20)).collect()
    with pytest.raises(InvalidRequestError, match="cannot be met") as hopeless:
        client.submit([5], params(200, ignore_eos=True), timeout_s=50)
    assert hopeless.value.param == "timeout_s"
    for stream in [client.submit([5], params(5)) for _ in range(10)]:  # one leaves the queue every five seconds
        stream.collect()
    clock.go.clear()
    waiting = [client.submit([5], params(5)) for _ in range(10)]
    with pytest.raises(DeadlineError, match="cannot be met") as raised:
        client.submit([5], params(20, ignore_eos=True), timeout_s=30)
    assert raised.value.param == "timeout_s" and raised.value.retry_after_s == pytest.approx(45, abs=10)
    clock.go.set()
    assert [stream.collect().outputs[0].finish_reason for stream in waiting] == ["length"] * 10
    # It may end with its first token, so nobody can say that it will not be over in time.
    assert client.submit([5], params(200), timeout_s=50).collect().outputs[0].stop_reason == "timeout"
    assert 'vllm:admission_rejections_total{model_name="paged-tiny",reason="timeout_s"} 1.0' in client.metrics_text()


def test_retry_after_is_measured(start: Start, clock: Clock) -> None:
    client = start(max_num_queued_reqs=3)
    for _ in range(10):  # ten times four requests of five steps each: one leaves the queue every five seconds
        for stream in [client.submit([5], params(5)) for _ in range(4)]:
            stream.collect()
    clock.go.clear()
    with pytest.raises(QueueFullError) as raised:
        for _ in range(10):
            client.submit([5], params(5))
    assert raised.value.retry_after_s == pytest.approx(5, rel=0.2)
    assert raised.value.reason == "max_num_queued_reqs"


def test_tokens_that_wait_are_bounded(start: Start, executor: FakeExecutor, clock: Clock) -> None:
    client = start(max_num_queued_tokens=100, max_num_queued_reqs=None)
    inside = threading.Event()

    def hold(plan: StepPlan) -> None:
        if len(executor.plans) > 1:  # the first step has made it a running one
            inside.set()
            assert clock.go.wait(TIMEOUT_S)

    executor.before_run = hold
    clock.go.clear()
    streams = [client.submit([5] * 60, params(2))]
    assert inside.wait(TIMEOUT_S)
    streams += [client.submit([5] * length, params(2)) for length in (60, 40)]
    with pytest.raises(QueueFullError, match=r"100 tokens wait, the prompt has 1, .*100 \(max_num_queued_tokens\)"):
        client.submit([5], params(2))
    assert client.stats().num_waiting_tokens == 100
    clock.go.set()
    assert all(stream.collect().outputs[0].finish_reason == "length" for stream in streams)
    assert 'reason="max_num_queued_tokens"} 1.0' in client.metrics_text()
    client.submit([5] * 200, params(2)).collect()  # nobody waits: it may be longer than the bound
