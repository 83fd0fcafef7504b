"""Who is sent away at the door, why, and for how long."""

from __future__ import annotations

from typing import Any

import pytest

from paged_backend.config import SchedulerConfig
from paged_backend.engine.admission import Admission
from paged_backend.engine.pace import Pace
from paged_backend.engine.request import EngineRequest
from paged_backend.engine.stats import EngineStats
from paged_backend.errors import DeadlineError, InvalidRequestError, QueueFullError
from paged_backend.sampling_params import SamplingParams

STEP_S = 0.1


def measured() -> Pace:
    """Steps of 0.1 s, and a request out of the queue every half second."""
    pace = Pace()
    for _ in range(300):
        pace.note_step(4, STEP_S, 100.0)
        pace.note_queue(1, 0.5)
    return pace


def check(
    stats: EngineStats,
    *,
    pace: Pace | None = None,
    prompt: int = 4,
    count: int = 1,
    timeout_s: float | None = None,
    deadline_by: Any = "timeout_s",
    params: dict[str, Any] | None = None,
    **config: Any,
) -> None:
    scheduler = SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=16, **config)
    sampling = SamplingParams(max_tokens=50, **(params or {}))
    deadline_s = None if timeout_s is None else 100.0 + timeout_s
    request = EngineRequest(
        "r", [5] * prompt, sampling, arrival_s=100.0, deadline_s=deadline_s, deadline_by=deadline_by
    )
    Admission(scheduler, measured() if pace is None else pace).check([(request, 50)] * count, stats)


def test_requests_that_may_wait() -> None:
    bound = {"max_num_queued_reqs": 2}
    check(EngineStats(num_running=4, num_waiting=1), **bound)
    check(EngineStats(num_running=1, num_waiting=4), **bound)  # three of them can run
    with pytest.raises(QueueFullError, match=r"4 running, 2 waiting, and at most 2 \(max_num_queued_reqs\)") as raised:
        check(EngineStats(num_running=4, num_waiting=2), **bound)
    assert (raised.value.reason, raised.value.param) == ("max_num_queued_reqs", None)
    check(EngineStats(num_running=4, num_waiting=10**6), max_num_queued_reqs=None)


def test_tokens_that_may_wait() -> None:
    bound = {"max_num_queued_tokens": 100}
    check(EngineStats(num_running=4, num_waiting=3, num_waiting_tokens=90), prompt=10, **bound)
    with pytest.raises(QueueFullError, match=r"90 tokens wait, the prompt has 11, .* 100 \(max_num") as raised:
        check(EngineStats(num_running=4, num_waiting=3, num_waiting_tokens=90), prompt=11, **bound)
    assert raised.value.reason == "max_num_queued_tokens"
    # Otherwise it could never be served: with nobody before it, it does not wait.
    check(EngineStats(num_running=4), prompt=500, **bound)


@pytest.mark.parametrize(("num_waiting", "retry_after_s"), [(12, 1.0), (15, 2.0), (20, 4.5)])
def test_retry_after_is_what_the_queue_takes_to_have_room(num_waiting: int, retry_after_s: float) -> None:
    with pytest.raises(QueueFullError) as raised:
        check(EngineStats(num_running=4, num_waiting=num_waiting), max_num_queued_reqs=12)
    assert raised.value.retry_after_s == pytest.approx(retry_after_s)


def test_retry_after_counts_tokens_in_requests() -> None:
    # 60 tokens too many are six requests of ten: three seconds.
    stats = EngineStats(num_running=4, num_waiting=10, num_waiting_tokens=100)
    with pytest.raises(QueueFullError) as raised:
        check(stats, prompt=20, max_num_queued_tokens=60)
    assert raised.value.retry_after_s == pytest.approx(3.0)


def test_before_anything_is_measured() -> None:
    with pytest.raises(QueueFullError) as raised:
        check(EngineStats(num_running=4), max_num_queued_reqs=0, pace=Pace())
    assert raised.value.retry_after_s == 1.0
    check(EngineStats(num_running=4, num_waiting=1000), timeout_s=0.001, pace=Pace())


def test_a_deadline_counts_the_queue_in_order_of_arrival() -> None:
    # Behind 9 others, at half a second each, and two steps for a prompt of 32.
    stats = EngineStats(num_running=4, num_waiting=9)
    check(stats, prompt=32, timeout_s=5.3)
    with pytest.raises(DeadlineError, match=r"timeout_s \(3\) cannot be met.* 5 s in the queue, behind 9") as raised:
        check(stats, prompt=32, timeout_s=3.0)
    assert (raised.value.reason, raised.value.param) == ("timeout_s", "timeout_s")
    assert raised.value.retry_after_s == pytest.approx(2.2)


@pytest.mark.parametrize("policy", ["priority", "fair"])
def test_a_deadline_where_the_order_may_change(policy: str) -> None:
    stats = EngineStats(num_running=4, num_waiting=9)
    check(stats, timeout_s=0.7, scheduling_policy=policy)  # it may be the next
    with pytest.raises(DeadlineError):
        check(stats, timeout_s=0.5, scheduling_policy=policy)


@pytest.mark.parametrize(
    ("params", "num_output_tokens"),
    [
        ({}, 1),
        ({"min_tokens": 20}, 20),
        ({"ignore_eos": True}, 50),
        ({"ignore_eos": True, "stop": ["x"]}, 1),
        ({"ignore_eos": True, "stop_token_ids": [7], "min_tokens": 5}, 5),
    ],
)
def test_a_deadline_counts_only_tokens_that_must_come(params: dict[str, Any], num_output_tokens: int) -> None:
    check(EngineStats(), params=params, timeout_s=STEP_S * num_output_tokens + 0.01)
    with pytest.raises(InvalidRequestError, match=r"timeout_s .* cannot be met"):
        check(EngineStats(), params=params, timeout_s=STEP_S * num_output_tokens - 0.01)


def test_an_idle_engine_does_not_refuse_for_ever() -> None:
    pace = measured()
    pace.note_step(4, 30.0, 95.0)
    late = {"pace": pace, "timeout_s": 0.2}
    with pytest.raises(InvalidRequestError):
        check(EngineStats(), **late)
    pace.stepped_s = 94.9
    check(EngineStats(), **late)
    for stats in (EngineStats(num_running=1), EngineStats(num_waiting=1)):  # these will measure anew
        with pytest.raises(InvalidRequestError):
            check(stats, **late)


def test_retry_after_a_deadline_has_a_bound() -> None:
    pace = Pace()
    pace.note_step(4, 1.0, 100.0)
    pace.note_queue(1, 1e6)
    with pytest.raises(DeadlineError) as raised:
        check(EngineStats(num_running=4, num_waiting=9), pace=pace, timeout_s=2.0)
    assert raised.value.retry_after_s == pytest.approx(600.0, abs=2.0)


def test_a_deadline_counts_on_as_many_hits_as_there_were() -> None:
    warm = EngineStats(prefix_cache_queries=1000, prefix_cache_hits=900)
    check(warm, prompt=160, timeout_s=0.15)
    with pytest.raises(InvalidRequestError):
        check(EngineStats(prefix_cache_queries=1000), prompt=160, timeout_s=0.9)


def test_an_idle_engine_takes_a_list_that_fits_it() -> None:
    idle, bound = EngineStats(), {"max_num_queued_tokens": 40}  # 4 slots, steps of 16 tokens
    check(idle, count=4, prompt=4, max_num_queued_tokens=0)  # one step begins all
    check(idle, count=10, prompt=4, max_num_queued_tokens=24)
    check(idle, count=2, prompt=40, **bound)  # the first is begun at once
    check(idle, count=1, prompt=500, **bound)
    for count, prompt, tokens in ((5, 4, 0), (11, 4, 24), (2, 41, 40)):
        with pytest.raises(InvalidRequestError, match=rf"{count * prompt} tokens.*max_num_queued_tokens") as raised:
            check(idle, count=count, prompt=prompt, max_num_queued_tokens=tokens)
        assert raised.value.param == "prompt"
    # What an idle engine takes, a busy one refuses for a while.
    with pytest.raises(QueueFullError, match="20 tokens wait, the 2 prompts have 60"):
        check(EngineStats(num_running=4, num_waiting=1, num_waiting_tokens=20), count=2, prompt=30, **bound)
    with pytest.raises(QueueFullError, match="0 tokens wait, the 4 prompts have 16"):
        check(EngineStats(num_running=4), count=4, prompt=4, max_num_queued_tokens=0)


def test_tokens_that_the_next_step_begins_do_not_wait() -> None:
    # Half of those that wait find a slot, and their tokens are within a step's.
    stats = EngineStats(num_running=2, num_waiting=4, num_waiting_tokens=12)
    check(stats, prompt=4, max_num_queued_tokens=10)
    with pytest.raises(QueueFullError):
        check(stats, prompt=5, max_num_queued_tokens=10)


def test_a_list_counts_whole() -> None:
    bound = {"max_num_queued_reqs": 2}
    check(EngineStats(), count=6, **bound)
    with pytest.raises(InvalidRequestError, match="7 requests; this server can hold 6"):
        check(EngineStats(), count=7, **bound)
    with pytest.raises(QueueFullError, match="1 running"):
        check(EngineStats(num_running=1), count=6, **bound)


def test_a_list_on_an_idle_engine_does_not_queue_behind_itself() -> None:
    check(EngineStats(), count=4, timeout_s=0.4)  # half a second a place, had it to wait
    with pytest.raises(DeadlineError, match=r"0\.5 s in the queue, behind 0 others"):
        check(EngineStats(), count=5, timeout_s=0.4)
    late = measured()
    late.stepped_s = 0.0
    check(EngineStats(), count=5, timeout_s=0.4, pace=late)


@pytest.mark.parametrize(
    ("by", "remedy", "param"),
    [
        ("timeout_s", "Allow more time", "timeout_s"),
        ("default_timeout_s", "Send a timeout_s of your own", "timeout_s"),
        ("max_timeout_s", "This server allows no more time: ask for less", None),
    ],
)
def test_what_is_too_long_for_its_time_is_told_by_the_bound_that_applied(
    by: str, remedy: str, param: str | None
) -> None:
    long = {"params": {"min_tokens": 20}, "timeout_s": 1.0, "deadline_by": by}
    words = rf"^{by} \(1\) cannot be met.* 2 s .*nothing else.*{remedy}"
    with pytest.raises(InvalidRequestError, match=words) as wrong:
        check(EngineStats(num_running=4, num_waiting=9), **long)
    assert wrong.value.param == param
    with pytest.raises(DeadlineError, match=rf"^{by} \(3\) cannot be met.*{remedy}.*, or try again later") as late:
        check(EngineStats(num_running=4, num_waiting=9), **{**long, "timeout_s": 3.0})
    assert (late.value.param, late.value.reason) == (param, by)
