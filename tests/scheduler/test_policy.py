"""The waiting queues are in order, whatever is taken out of their middle."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from paged_backend.scheduler.policy import order_key
from paged_backend.scheduler.sequence import Sequence
from paged_backend.scheduler.waiting_queue import WaitingQueue


def waiting(seq_id: int, order: tuple[int, ...]) -> Sequence:
    """A new sequence, as far as a queue looks at it, with four tokens."""
    return cast(Sequence, SimpleNamespace(seq_id=seq_id, order=order, token_ids=[5] * 4))


def test_the_policies_order() -> None:
    requests: list[Any] = [(1, 0, 0), (0, 1, 0), (0, 1, 1), (-1, 2, 0)]
    assert sorted(requests, key=lambda r: order_key("fcfs")(*r)) == requests
    assert sorted(requests, key=lambda r: order_key("priority")(*r)) == [requests[i] for i in (3, 1, 2, 0)]


@pytest.mark.parametrize("seed", range(5))
def test_random_pushes_removals_and_pops(seed: int) -> None:
    draw = random.Random(seed)
    queue, members = WaitingQueue(), list[Sequence]()
    for i in range(600):
        action = draw.random()
        if action < 0.5 or not members:
            sequence = waiting(i, (draw.randrange(3), i))
            queue.push(sequence)
            members.append(sequence)
        elif action < 0.8:
            sequence = members.pop(draw.randrange(len(members)))
            queue.remove(sequence)
            assert sequence not in queue
        else:
            first = min(members, key=lambda s: s.order)
            assert queue.peek() is first and queue.pop() is first
            members.remove(first)
        assert len(queue) == len(members) and {id(s) for s in queue} == {id(s) for s in members}
        assert queue.num_tokens == 4 * len(members)


def test_a_sequence_can_come_back() -> None:
    queue = WaitingQueue()
    first, second = waiting(0, (0,)), waiting(1, (1,))
    queue.push(first)
    queue.push(second)
    queue.remove(first)
    queue.push(first)
    assert [queue.pop(), queue.pop()] == [first, second]
    assert len(queue) == 0


def test_removed_entries_do_not_pile_up() -> None:
    queue = WaitingQueue()
    queue.push(waiting(0, (0,)))
    for i in range(1, 10_000):
        sequence = waiting(i, (i,))
        queue.push(sequence)
        queue.remove(sequence)
    assert len(queue._heap) < 64
