"""Who is served first, and the queue that is kept in that order."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from paged_backend.scheduler.sequence import Sequence

OrderKey = Callable[[int, int, int], tuple[int, ...]]
"""(priority, arrival, index of the sample) -> sort key; the smallest is served first and preempted last."""


def _fcfs(priority: int, arrival: int, index: int) -> tuple[int, ...]:
    return (arrival, index)


def _priority(priority: int, arrival: int, index: int) -> tuple[int, ...]:
    return (priority, arrival, index)


def order_key(policy: str) -> OrderKey:
    """The sort key of `SchedulerConfig.scheduling_policy`, which has checked the name."""
    return {"fcfs": _fcfs, "priority": _priority}[policy]


class WaitingQueue:
    """Sequences without blocks, the first to be served on top.

    A preempted sequence needs no special place: it was admitted before all that still wait behind it, so its
    key puts it in front of them. Push, pop and remove are O(log n) or better; a removed one leaves its heap
    entry behind until that comes to the top, or until such entries are the majority.
    """

    __slots__ = ("_heap", "_members")

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, ...], int, Sequence]] = []
        self._members: dict[int, Sequence] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence.seq_id in self._members

    def __iter__(self) -> Iterator[Sequence]:
        """All members, in no order."""
        return iter(self._members.values())

    def push(self, sequence: Sequence) -> None:
        """Adds a sequence at the place that its `order` gives."""
        assert sequence.seq_id not in self._members, sequence
        self._members[sequence.seq_id] = sequence
        heapq.heappush(self._heap, (sequence.order, sequence.seq_id, sequence))

    def peek(self) -> Sequence:
        """The first sequence, which stays."""
        assert self._members, "peek on an empty queue"
        while self._heap[0][1] not in self._members:
            heapq.heappop(self._heap)
        return self._heap[0][2]

    def pop(self) -> Sequence:
        """Takes the first sequence."""
        sequence = self.peek()
        heapq.heappop(self._heap)
        del self._members[sequence.seq_id]
        return sequence

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is."""
        del self._members[sequence.seq_id]
        if len(self._heap) > 2 * len(self._members) + 16:
            self._heap = [entry for entry in self._heap if entry[1] in self._members]
            heapq.heapify(self._heap)
