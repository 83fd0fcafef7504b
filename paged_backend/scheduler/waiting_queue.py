"""Sequences that wait, in an order that never changes."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

from paged_backend.scheduler.sequence import Sequence


class WaitingQueue:
    """Sequences without blocks, the first to be served on top: fcfs and priority, whose orders never change.

    A preempted sequence needs no special place: it was admitted before all that still wait behind it, so its
    key puts it in front of them. Push, pop and remove are O(log n) or better; a removed one leaves its heap
    entry behind until that comes to the top, or until such entries are the majority.

    Attributes:
        num_tokens: known tokens of its members.
    """

    __slots__ = ("_heap", "_members", "num_tokens")

    def __init__(self) -> None:
        self.num_tokens = 0
        self._heap: list[tuple[tuple[int, ...], int, Sequence]] = []
        self._members: dict[int, Sequence] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence.seq_id in self._members

    def __iter__(self) -> Iterator[Sequence]:
        """All members, in no order."""
        return iter(self._members.values())

    def arrive(self, sequence: Sequence, running: Iterable[Sequence]) -> None:
        """Adds a new request's sequence, beside all those that run now."""
        self.push(sequence)

    def push(self, sequence: Sequence) -> None:
        """Adds a sequence, a preempted one as a rule, at the place that its `order` gives."""
        assert sequence.seq_id not in self._members, sequence
        self._members[sequence.seq_id] = sequence
        self.num_tokens += len(sequence.token_ids)
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
        self.num_tokens -= len(sequence.token_ids)
        return sequence

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is."""
        del self._members[sequence.seq_id]
        self.num_tokens -= len(sequence.token_ids)
        if len(self._heap) > 2 * len(self._members) + 16:
            self._heap = [entry for entry in self._heap if entry[1] in self._members]
            heapq.heapify(self._heap)

    def last(self, running: list[Sequence]) -> Sequence:
        """The one that gives way where blocks run out; `running` is in order and not empty."""
        return running[-1]

    # Nothing here depends on what was served; `FairQueue` says what these tell.

    def book_prompt(self, sequence: Sequence) -> None:
        """A sequence is admitted for the first time."""

    def start(self, sequence: Sequence) -> None:
        """A sequence begins to run."""

    def stop(self, sequence: Sequence) -> None:
        """A sequence runs no more."""

    def follow(self, sequences: Iterable[Sequence]) -> None:
        """Running sequences do something else than to draw a token a step as before."""

    def end_step(self) -> None:
        """A step was computed."""

    def check_invariants(self, running: Iterable[Sequence]) -> None:
        """Asserts that the queue's own books agree. For tests."""
        assert self.num_tokens == sum(len(sequence.token_ids) for sequence in self)
