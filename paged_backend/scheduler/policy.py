"""Who is served first: the names of the policies, and what each stands for."""

from __future__ import annotations

from collections.abc import Callable

from paged_backend.scheduler.fair_queue import FairQueue
from paged_backend.scheduler.waiting_queue import WaitingQueue

OrderKey = Callable[[int, int, int], tuple[int, ...]]
"""(priority, arrival, index of the sample) -> sort key; the smallest is served first."""


def _fcfs(priority: int, arrival: int, index: int) -> tuple[int, ...]:
    return (arrival, index)


def _priority(priority: int, arrival: int, index: int) -> tuple[int, ...]:
    return (priority, arrival, index)


def order_key(policy: str) -> OrderKey:
    """The sort key of `SchedulerConfig.scheduling_policy`, which has checked the name."""
    return {"fcfs": _fcfs, "fair": _fcfs, "priority": _priority}[policy]


def waiting_queue(policy: str) -> WaitingQueue | FairQueue:
    """The empty queue of `SchedulerConfig.scheduling_policy`."""
    return FairQueue() if policy == "fair" else WaitingQueue()
