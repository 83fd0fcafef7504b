"""The waiting queues are in order, whatever is taken out of their middle."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from paged_backend.scheduler.policy import INPUT_COST, OUTPUT_COST, FairQueue, WaitingQueue, order_key, waiting_queue
from paged_backend.scheduler.sequence import Sequence


def waiting(seq_id: int, order: tuple[int, ...], tenant: str = "") -> Sequence:
    """A new sequence, as far as a queue looks at it, with a prompt of four tokens."""
    return cast(
        Sequence,
        SimpleNamespace(
            seq_id=seq_id,
            order=order,
            tenant=tenant,
            token_ids=[5] * 4,
            prompt_token_ids=(5,) * 4,
            num_booked_tokens=4,
            num_cached_tokens=0,
        ),
    )


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


def serve(queue: FairQueue, num_outputs: int) -> Sequence:
    """Admits the first sequence, which computes its prompt and draws so many tokens."""
    sequence = queue.pop()
    queue.book_prompt(sequence)
    sequence.token_ids.extend([6] * num_outputs)
    queue.book_outputs([sequence])
    return sequence


def fair(*tenants: str) -> FairQueue:
    """A queue with one sequence of each of these tenants, in order of arrival."""
    queue = waiting_queue("fair")
    assert isinstance(queue, FairQueue)
    for i, tenant in enumerate(tenants):
        queue.arrive(waiting(i, (i, 0), tenant), [])
    return queue


def test_the_tenant_that_was_served_least_is_next() -> None:
    queue = fair("a", "a", "a", "b", "b", "c")
    served = [serve(queue, num_outputs).tenant for num_outputs in (10, 1, 1, 1, 1, 1)]
    assert served == ["a", "b", "c", "b", "a", "a"]
    assert len(queue) == queue.num_tokens == 0


def test_costs_are_those_of_computed_inputs_and_of_outputs() -> None:
    queue = fair("a", "a")
    sequence = queue.pop()
    sequence.num_cached_tokens = 3
    queue.book_prompt(sequence)
    sequence.token_ids.extend([6] * 5)
    for _ in range(2):  # what is booked is not booked again
        queue.book_outputs([sequence])
    assert queue.counters() == {"a": INPUT_COST + 5 * OUTPUT_COST}


def test_nobody_saves_up_while_away() -> None:
    queue = fair(*"aaaa")
    for _ in range(3):
        serve(queue, 100)
    queue.arrive(waiting(9, (9, 0), "b"), [])
    assert queue.counters()["b"] == queue.counters()["a"] > 0
    assert queue.peek().tenant == "a"  # of two that are equal, who came first


def test_an_empty_queue_lifts_to_who_left_it_last() -> None:
    queue = fair("a")
    sequence = serve(queue, 100)
    sequence.token_ids.extend([6] * 50)  # drawn since
    queue.arrive(waiting(1, (1, 0), "b"), [sequence])
    assert queue.counters() == {"b": 4 * INPUT_COST + 150 * OUTPUT_COST}
    queue.arrive(waiting(2, (2, 0), "a"), [sequence])
    assert queue.pop().tenant == "b"


def test_the_youngest_of_the_tenant_that_was_served_most_gives_way() -> None:
    queue = fair("b", "a", "a", "b")
    running = [queue.pop() for _ in range(4)]
    assert queue.last(running) is running[-1]  # all are equal: who came last
    first_of_a = next(sequence for sequence in running if sequence.tenant == "a")
    first_of_a.token_ids.append(6)
    last = queue.last(running)
    assert last.tenant == "a" and last is not first_of_a


def test_a_sequence_that_gave_way_is_in_front_of_its_tenants_others() -> None:
    queue = fair("a", "a", "b")
    first = serve(queue, 1)
    queue.push(first)
    assert [queue.pop() for _ in range(3)].index(first) == 1  # after b, which was served nothing
    assert first.seq_id == 0


def test_tenants_that_are_gone_are_forgotten() -> None:
    queue = fair("patient", "patient")
    running: list[Sequence] = []
    for i in range(2000):
        queue.arrive(waiting(10 + i, (10 + i, 0), f"t{i}"), running)
        queue.remove(next(sequence for sequence in queue if sequence.tenant == f"t{i}"))
    assert len(queue._tenants) < 100
    heavy = waiting(9999, (9999, 0), "heavy")
    queue.arrive(heavy, running)
    queue.remove(heavy)
    heavy.token_ids.extend([6] * 100)
    queue.book_outputs([heavy])
    for i in range(2000):  # what it was served is not forgotten
        queue.arrive(waiting(20_000 + i, (20_000 + i, 0), f"u{i}"), running)
        queue.remove(next(sequence for sequence in queue if sequence.tenant == f"u{i}"))
    queue.arrive(waiting(50_000, (50_000, 0), "heavy"), running)
    assert queue.counters()["heavy"] == 100 * OUTPUT_COST
