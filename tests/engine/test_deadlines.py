"""The nearest deadline first, each once, and none for what is over."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

from paged_backend.engine.deadlines import Deadlines


def state(deadline_s: float | None) -> Any:
    return SimpleNamespace(request=SimpleNamespace(deadline_s=deadline_s), over=False)


def test_each_is_given_once_in_order() -> None:
    draw = random.Random(1)
    states = [state(draw.choice([None, draw.uniform(0, 10)])) for _ in range(300)]
    deadlines = Deadlines()
    for one in states:
        deadlines.add(one, len(states))
    for one in states[::3]:
        one.over = True
    for now_s in (2.0, 2.0, 5.0, 11.0):
        overdue = deadlines.take_overdue(now_s)
        due = [s for s in states if s.request.deadline_s is not None and s.request.deadline_s <= now_s and not s.over]
        assert overdue == sorted(due, key=lambda one: one.request.deadline_s)
        for one in overdue:
            one.over = True
    assert not deadlines


def test_what_is_over_does_not_pile_up() -> None:
    deadlines = Deadlines()
    for i in range(5000):
        one = state(1e9 + i)
        deadlines.add(one, 1)
        one.over = True
    assert len(deadlines._heap) < 32
