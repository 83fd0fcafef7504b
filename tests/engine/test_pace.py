"""What the engine measures of itself: exact where the steps are exact, and never less than nothing."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paged_backend.engine.pace import LONGEST_S, Pace


def paced(step_s: float, token_s: float, tokens: list[int]) -> Pace:
    pace = Pace()
    for num_tokens in tokens:
        pace.note_step(num_tokens, step_s + token_s * num_tokens, 0.0)
    return pace


@pytest.mark.parametrize("seed", range(3))
def test_steps_on_a_line_are_told_exactly(seed: int) -> None:
    draw = random.Random(seed)
    pace = paced(0.01, 0.0005, [draw.randrange(1, 300) for _ in range(250)])
    # A prompt of 500 in steps of 200 is three steps; the third draws the first of 11 tokens, beside three others.
    whole_s = pace.compute_s(500, 11, num_running=4, budget=200)
    assert whole_s == pytest.approx(3 * 0.01 + 500 * 0.0005 + 10 * (0.01 + 4 * 0.0005))


def test_the_latest_steps_count_most() -> None:
    pace = paced(1.0, 0.0, [8, 9] * 200)
    for num_tokens in [8, 9] * 500:
        pace.note_step(num_tokens, 0.02, 0.0)
    assert pace.compute_s(1, 1, num_running=1, budget=16) == pytest.approx(0.02, rel=0.01)


def test_steps_that_are_all_alike_tell_the_step_alone() -> None:
    pace = paced(0.05, 0.0, [64] * 100)
    assert pace.compute_s(64, 1, num_running=1, budget=64) == pytest.approx(0.05)


def test_nothing_measured_says_nothing() -> None:
    pace = Pace()
    assert pace.queue_s(5) is None
    assert pace.compute_s(10_000, 10_000, num_running=8, budget=16) == 0.0


@pytest.mark.parametrize("begun", [{"_n": 1.0}, {"_x": 8.0}])
def test_in_the_middle_of_the_first_note_says_nothing(begun: dict[str, float]) -> None:
    pace = Pace()
    for name, value in begun.items():
        setattr(pace, name, value)
    assert pace.compute_s(10, 10, num_running=1, budget=16) == 0.0


@given(st.lists(st.tuples(st.integers(1, 4096), st.floats(1e-7, 1e3)), max_size=60))
def test_no_estimate_is_below_nothing(steps: list[tuple[int, float]]) -> None:
    pace = Pace()
    for num_tokens, seconds in steps:
        pace.note_step(num_tokens, seconds, 0.0)
    short, long = (pace.compute_s(n, n, num_running=3, budget=100) for n in (10, 1000))
    assert 0.0 <= short <= long


def test_the_queue_drains_at_the_rate_of_its_starts() -> None:
    pace = Pace()
    for _ in range(400):
        pace.note_queue(1, 0.25)
    assert pace.queue_s(8) == pytest.approx(2.0)
    for _ in range(400):  # two a second become ten
        pace.note_queue(2, 0.2)
    assert pace.queue_s(8) == pytest.approx(0.8, rel=0.01)


def test_a_queue_that_stands_still_gets_longer_and_longer() -> None:
    pace = Pace()
    pace.note_queue(0, 3.0)
    assert pace.queue_s(1) == 3.0
    pace.note_queue(0, 4.0)
    assert pace.queue_s(1) == 7.0
    pace.note_queue(0, 1e9)
    assert pace.queue_s(1) == LONGEST_S
