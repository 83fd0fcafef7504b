"""A step that is planned before the last one's tokens are known gives the same tokens, blocks and books."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.property.overlapped_life import OverlappedLife
from tests.property.test_scheduler_machine import SchedulerMachine
from tests.property.test_seeded_lives import EVENTS, NUM_EVENTS, counts, happen, random_request, random_shape

NUM_LIVES = 8


class OverlappedMachine(SchedulerMachine):
    """Leads one."""

    kind = OverlappedLife


def test_random_lives() -> None:
    run_state_machine_as_test(
        OverlappedMachine,
        settings=settings(
            max_examples=120, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_random_lives_for_long() -> None:
    run_state_machine_as_test(
        OverlappedMachine,
        settings=settings(
            max_examples=1500, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.parametrize("policy", ["fcfs", "priority", "fair"])
def test_everything_at_once(policy: str) -> None:
    seen = Counter[str]()
    for seed in range(NUM_LIVES):
        draw = Random(f"overlapped {policy} {seed}")
        life = OverlappedLife(random_shape(draw, policy))
        for event in draw.choices(list(EVENTS), list(EVENTS.values()), k=NUM_EVENTS):
            before = all_counts(life)
            if event == "undrawable" and life.live():
                life.step_without(life.plan(), draw.choice(life.plan().sequences).seq_id)
            elif event != "undrawable":
                happen(life, draw, event)
            life.check()
            seen += all_counts(life) - before
        life.drain()
    assert all(seen[what] >= count for what, count in {"ahead": 200, "struck": 30, "preempted": 10}.items()), seen


def all_counts(life: OverlappedLife) -> Counter[str]:
    return counts(life) + Counter(ahead=life.num_ahead, struck=life.num_struck)


def test_plain_requests_are_always_planned_ahead() -> None:
    """But the first step of a life, and the next after blocks ran out."""
    for seed in range(NUM_LIVES):
        draw = Random(seed)
        life = OverlappedLife(random_shape(draw, "fcfs"))
        num_idle = 0
        for _ in range(60):
            request = random_request(draw)
            request["params"] = type(request["params"])(
                max_tokens=request["params"].max_tokens, ignore_eos=request["params"].ignore_eos
            )
            life.submit(**request)
            num_idle += life.launched is None
            life.step()
            life.check()
        assert num_idle <= 1 + life.scheduler.num_preemptions + 6, (num_idle, life.scheduler.num_preemptions)
        life.drain()
