"""The fair queue: who is next, who gives way, and what is charged for what."""

from __future__ import annotations

import sys
from types import FrameType, SimpleNamespace
from typing import Any, cast

from paged_backend.config import SchedulerConfig
from paged_backend.kv.manager import KVCacheManager
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler import fair_queue
from paged_backend.scheduler.fair_queue import INPUT_COST, OUTPUT_COST, FairQueue
from paged_backend.scheduler.plan import StepResult
from paged_backend.scheduler.policy import waiting_queue
from paged_backend.scheduler.scheduler import Scheduler
from paged_backend.scheduler.sequence import Sequence


def waiting(seq_id: int, order: tuple[int, ...], tenant: str = "") -> Sequence:
    """A new sequence, as far as the queue looks at it, with a prompt of four tokens."""
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
            num_computed_tokens=0,
            num_preemptions=0,
            drawing_since=None,
            quiet_below=0,
        ),
    )


def serve(queue: FairQueue, num_outputs: int) -> Sequence:
    """Admits the first sequence, which computes its prompt and draws so many tokens."""
    sequence = queue.pop()
    queue.book_prompt(sequence)
    queue.start(sequence)
    draw(queue, sequence, num_outputs)
    return sequence


def draw(queue: FairQueue, sequence: Sequence, num_outputs: int) -> None:
    """So many more tokens of a running sequence."""
    sequence.token_ids.extend([6] * num_outputs)
    queue.follow([sequence])


def preempt(queue: FairQueue, sequence: Sequence) -> None:
    """A running sequence gives way."""
    queue.stop(sequence)
    sequence.num_preemptions += 1
    queue.push(sequence)


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
    queue.start(sequence)
    draw(queue, sequence, 5)
    draw(queue, sequence, 0)  # what is booked is not booked again
    assert queue.counters() == {"a": INPUT_COST + 5 * OUTPUT_COST}


def test_nobody_saves_up_while_away() -> None:
    queue = fair(*"aaaa")
    for _ in range(3):
        serve(queue, 100)
    queue.arrive(waiting(9, (9, 0), "b"), [])
    assert queue.counters()["b"] == queue.counters()["a"] > 0
    assert queue.peek().tenant == "a"  # of two that are equal, who came first


def test_nobody_saves_up_while_asking_for_less_than_its_share() -> None:
    """Who only runs, or only waits to run again, is not backlogged, and is lifted when its next request comes."""
    for gives_way in (False, True):
        queue = fair(*"abbb")
        slow = serve(queue, 1)
        for _ in range(2):
            serve(queue, 100)
        if gives_way:
            preempt(queue, slow)
        queue.arrive(waiting(9, (9, 0), "a"), [slow])
        assert queue.counters()["a"] == queue.counters()["b"] == 2 * (4 * INPUT_COST + 100 * OUTPUT_COST)


def test_who_gives_way_is_not_lifted() -> None:
    """It did not become backlogged: it comes back with the little that it was served."""
    queue = fair(*"abbb")
    slow = serve(queue, 1)
    for _ in range(2):
        serve(queue, 100)
    preempt(queue, slow)
    assert queue.counters()["a"] == 4 * INPUT_COST + OUTPUT_COST < queue.counters()["b"]
    queue.arrive(waiting(9, (9, 0), "c"), [])
    assert queue.counters()["c"] == queue.counters()["b"], "nor is the next one lifted only so far"


def test_an_empty_queue_lifts_to_who_left_it_last() -> None:
    queue = fair("a")
    sequence = serve(queue, 100)
    draw(queue, sequence, 50)
    queue.arrive(waiting(1, (1, 0), "b"), [sequence])
    assert queue.counters() == {"b": 4 * INPUT_COST + 150 * OUTPUT_COST}
    queue.arrive(waiting(2, (2, 0), "a"), [sequence])
    assert queue.pop().tenant == "b"


def test_the_youngest_of_the_tenant_that_was_served_most_gives_way() -> None:
    queue = fair("b", "a", "a", "b")
    running = [queue.pop() for _ in range(4)]
    for sequence in running:
        queue.start(sequence)
    assert queue.last(running) is running[-1]  # all are equal: who came last
    first_of_a = next(sequence for sequence in running if sequence.tenant == "a")
    draw(queue, first_of_a, 1)
    last = queue.last(running)
    assert last.tenant == "a" and last is not first_of_a


def test_a_sequence_that_gave_way_is_in_front_of_its_tenants_others() -> None:
    queue = fair("a", "a", "b")
    first = serve(queue, 1)
    preempt(queue, first)
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
    queue.start(heavy)
    draw(queue, heavy, 100)
    queue.stop(heavy)
    for i in range(2000):  # what it was served is not forgotten
        queue.arrive(waiting(20_000 + i, (20_000 + i, 0), f"u{i}"), running)
        queue.remove(next(sequence for sequence in queue if sequence.tenant == f"u{i}"))
    queue.arrive(waiting(50_000, (50_000, 0), "heavy"), running)
    assert queue.counters()["heavy"] == 100 * OUTPUT_COST


def lines_of_a_step(num_running: int, num_tenants: int) -> int:
    """Lines of the fair queue that are executed in a step in which all running sequences draw a token, while the
    first of several tenants waits for blocks."""
    block_size = 1024
    kv = KVCacheManager(num_running + 1, block_size, False)
    config = SchedulerConfig(
        max_num_seqs=2 * num_running, max_num_batched_tokens=4 * num_running, scheduling_policy="fair"
    )
    scheduler = Scheduler(config, kv, 2 * block_size)
    for i in range(num_running):
        scheduler.add(f"runs{i}", [i], SamplingParams(max_tokens=100), seed=0, tenant=f"t{i % num_tenants}")
    for i in range(num_tenants):
        prompt = [i] * (2 * block_size - 2)  # two blocks, where one is free
        scheduler.add(f"waits{i}", prompt, SamplingParams(max_tokens=2), seed=0, tenant=f"t{i}")
    num_lines = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal num_lines
        if frame.f_code.co_filename != fair_queue.__file__:
            return None
        num_lines += event == "line"
        return trace

    counts = []
    for _ in range(20):
        num_lines, before = 0, sys.gettrace()
        sys.settrace(trace)
        plan = scheduler.plan()
        scheduler.commit(StepResult([7] * len(plan.sequences)))
        sys.settrace(before)
        assert (scheduler.num_running, scheduler.num_waiting) == (num_running, num_tenants)
        scheduler.check_invariants()
        counts.append(num_lines)
    return sum(counts[5:])


def test_a_step_with_a_blocked_queue_costs_what_changes() -> None:
    few, many = (lines_of_a_step(num_running, 2) for num_running in (8, 128))
    assert few == many > 0
    # Only those tenants are looked at that come to the top.
    assert lines_of_a_step(128, 64) < 64 * 15
