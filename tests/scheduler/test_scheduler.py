"""Budget, order, preemption, samples and ends, step by step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from paged_backend.config import SchedulerConfig
from paged_backend.errors import InvalidRequestError
from paged_backend.kv.manager import KVCacheManager
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import NOT_DRAWN, StepPlan, StepResult
from paged_backend.scheduler.scheduler import Scheduler
from paged_backend.scheduler.sequence import Sequence

EOS = 2


def snapshot(plan: StepPlan) -> StepPlan:
    """A plan as it is now: its lines are the sequences' own, and change with them."""
    lines = tuple(
        replace(
            line,
            block_table=list(line.block_table),
            sampling=line.sampling and replace(line.sampling, token_ids=list(line.sampling.token_ids)),
        )
        for line in plan.sequences
    )
    return StepPlan(lines, plan.block_copies)


class Bench:
    """A scheduler and an executor that draws 100 + position, or what `draws` says for a seed."""

    def __init__(self, num_blocks: int = 64, block_size: int = 4, max_model_len: int = 64, **config: Any) -> None:
        self.kv = KVCacheManager(num_blocks, block_size)
        config = {"max_num_seqs": 8, "max_num_batched_tokens": 32, **config}
        self.scheduler = Scheduler(SchedulerConfig(**config), self.kv, max_model_len, {EOS})
        self.draws: dict[int, list[int]] = {}
        self.plans: list[StepPlan] = []

    def add(self, name: str, num_prompt: int, *, first: int = 1000, **params: Any) -> Any:
        options = {k: params.pop(k) for k in ("priority", "salt", "seed") if k in params}
        params = {"max_tokens": 8, "ignore_eos": False, **params}
        prompt = list(range(first, first + num_prompt))
        return self.scheduler.add(name, prompt, SamplingParams(**params), **{"seed": 0, **options})

    def step(self) -> list[tuple[Sequence, int]]:
        plan = self.scheduler.plan()
        self.plans.append(snapshot(plan))
        samples = []
        for s in plan.sequences:
            if s.sampling is not None:
                default = [100 + s.sampling.position]
                samples += [(self.draws.get(seed) or list(default)).pop(0) for seed in s.sampling.seeds]
        owners = self.scheduler.commit(StepResult(samples))
        self.scheduler.check_invariants()
        return list(zip(owners, samples, strict=True))

    def shape(self) -> list[tuple[int, int]]:
        """(seq_id, number of tokens) of the last plan."""
        return [(s.seq_id, len(s.token_ids)) for s in self.plans[-1].sequences]

    def run(self, limit: int = 1000) -> list[tuple[Sequence, int]]:
        events = []
        while self.scheduler.has_work:
            events += self.step()
            limit -= 1
            assert limit, "it does not end"
        return events


def test_a_request_runs_to_its_end() -> None:
    bench = Bench()
    sequence = bench.add("a", 6, max_tokens=3, seed=11)
    assert (bench.scheduler.num_waiting, bench.scheduler.num_running) == (1, 0)
    events = bench.step()
    assert events == [(sequence, 106)]
    (scheduled,) = bench.plans[0].sequences
    assert list(scheduled.token_ids) == list(range(1000, 1006)) and scheduled.num_computed_tokens == 0
    assert scheduled.sampling is not None
    assert (scheduled.sampling.seeds, scheduled.sampling.position) == ((11,), 6)
    bench.step()
    (scheduled,) = bench.plans[1].sequences
    assert (list(scheduled.token_ids), scheduled.num_computed_tokens) == ([106], 6)
    bench.run()
    assert sequence.output_token_ids == [106, 107, 108]
    assert sequence.finished and sequence.finish_reason == "length"
    assert bench.kv.num_free_blocks == 64 and bench.scheduler.sequences("a") == ()


def test_a_prompt_takes_what_is_left_of_the_budget() -> None:
    bench = Bench(max_num_batched_tokens=10)
    bench.add("a", 4)
    bench.add("b", 13, first=2000)
    assert len(bench.step()) == 1 and bench.shape() == [(0, 4), (1, 6)]
    assert bench.plans[-1].sequences[1].sampling is None
    assert len(bench.step()) == 2 and bench.shape() == [(0, 1), (1, 7)]
    bench.step()
    assert bench.shape() == [(0, 1), (1, 1)]


def test_a_long_prompt_leaves_a_token_for_each_behind_it() -> None:
    bench = Bench(max_num_batched_tokens=8, scheduling_policy="priority")
    for name in "ab":
        bench.add(name, 2, first=2000)
    bench.step()
    bench.add("urgent", 20, priority=-1)
    bench.step()
    assert bench.shape() == [(0, 1), (1, 1), (2, 6)]
    bench.step()
    assert bench.shape() == [(2, 6), (0, 1), (1, 1)]


def test_arrivals_are_served_in_order_and_nobody_overtakes() -> None:
    bench = Bench(max_num_seqs=2)
    for name in "abc":
        bench.add(name, 2, max_tokens=2)
    bench.step()
    assert bench.shape() == [(0, 2), (1, 2)]
    bench.step()
    bench.step()
    assert bench.shape() == [(2, 2)]
    bench = Bench(num_blocks=4)
    bench.add("a", 6, max_tokens=3)
    bench.add("big", 12, first=2000, max_tokens=1)
    bench.add("small", 2, first=3000, max_tokens=1)
    bench.step()
    assert bench.shape() == [(0, 6)]


def test_urgent_requests_go_first_under_the_priority_policy() -> None:
    bench = Bench(max_num_seqs=1, scheduling_policy="priority")
    for name, priority in (("late", 5), ("b", 0), ("a", 0), ("urgent", -3)):
        bench.add(name, 2, priority=priority, max_tokens=1)
    ended = [sequence.request_id for sequence, _ in bench.run()]
    assert ended == ["urgent", "b", "a", "late"]
    bench = Bench(max_num_seqs=1)
    for name, priority in (("first", 5), ("second", -3)):
        bench.add(name, 2, priority=priority, max_tokens=1)
    assert [sequence.request_id for sequence, _ in bench.run()] == ["first", "second"]


def test_the_latest_is_preempted_and_comes_back_with_its_tokens() -> None:
    bench = Bench(num_blocks=4)
    first = bench.add("a", 7, max_tokens=6)
    second = bench.add("b", 6, first=2000, max_tokens=5)
    bench.step()
    bench.step()
    assert bench.scheduler.num_running == 2
    bench.step()
    assert bench.shape() == [(0, 1)] and second.num_preemptions == 1 == bench.scheduler.num_preemptions
    assert second.num_computed_tokens == 0 and second.output_token_ids == [106, 107]
    assert bench.scheduler.num_waiting == 1
    bench.run()
    assert first.output_token_ids == [107, 108, 109, 110, 111, 112]
    assert second.output_token_ids == [106, 107, 108, 109, 110]
    resumed = next(s for plan in bench.plans[3:] for s in plan.sequences if s.seq_id == second.seq_id)
    assert resumed.sampling is not None and resumed.sampling.position == 8
    assert [*range(2000, 2006), 106, 107][resumed.num_computed_tokens :] == list(resumed.token_ids)


def test_the_least_urgent_is_preempted_under_the_priority_policy() -> None:
    bench = Bench(num_blocks=4, scheduling_policy="priority")
    low = bench.add("low", 7, max_tokens=6, priority=1)
    bench.step()
    high = bench.add("high", 6, first=2000, max_tokens=6, priority=0)
    bench.run()
    assert low.num_preemptions >= 1 and high.num_preemptions == 0


def test_a_resumed_sequence_finds_its_own_blocks() -> None:
    bench = Bench(num_blocks=5)
    bench.add("a", 7, max_tokens=6)
    second = bench.add("b", 9, first=2000, max_tokens=4)
    bench.run()
    assert second.num_preemptions == 1
    lines = [s for plan in bench.plans[1:] for s in plan.sequences if s.seq_id == second.seq_id]
    resumed = [s for s in lines if len(s.token_ids) > 1]
    assert [s.num_computed_tokens for s in resumed] == [8]
    assert second.num_cached_tokens == 0, "it counts what the prompt found on first admission"
    assert bench.kv.stats().prefix_queries == 16


def test_a_preempted_sequence_waits_until_all_its_tokens_fit() -> None:
    bench = Bench(num_blocks=6)
    bench.add("a", 8, max_tokens=14)
    second = bench.add("b", 8, first=2000, max_tokens=12)
    bench.run()
    assert second.num_preemptions == 1, "it does not come back only to be preempted again"


def test_a_prompt_in_chunks_keeps_later_ones_out_until_it_is_computed() -> None:
    bench = Bench(num_blocks=8, max_num_batched_tokens=8)
    bench.add("a", 20, max_tokens=2)
    bench.add("b", 20, first=2000, max_tokens=2)
    bench.run()
    assert bench.scheduler.num_preemptions == 0
    shapes = [[(s.seq_id, len(s.token_ids)) for s in plan.sequences] for plan in bench.plans]
    assert shapes[:4] == [[(0, 8)], [(0, 8)], [(0, 4)], [(0, 1)]], "b would need six blocks of eight"


def test_a_request_that_fills_the_pool_runs_alone() -> None:
    bench = Bench(num_blocks=3)
    whole = bench.add("a", 5, max_tokens=8)
    bench.add("b", 3, first=2000, max_tokens=10)
    bench.run()
    assert len(whole.output_token_ids) == 8 and whole.num_preemptions == 0


def test_a_shared_prefix_is_computed_once() -> None:
    bench = Bench()
    bench.add("a", 10)
    bench.step()
    second = bench.add("b", 10)
    bench.add("other tenant", 10, salt="x")
    bench.step()
    assert bench.shape() == [(0, 1), (1, 2), (2, 10)]
    assert second.num_cached_tokens == 8
    stats = bench.kv.stats()
    assert (stats.prefix_queries, stats.prefix_hits) == (30, 8)


def test_samples_part_after_the_prompt() -> None:
    bench = Bench(max_num_batched_tokens=8)
    parent = bench.add("a", 10, n=3, seed=7, max_tokens=3)
    assert bench.step() == [] and bench.scheduler.num_running == 1
    events = bench.step()
    (scheduled,) = bench.plans[-1].sequences
    assert scheduled.sampling is not None and scheduled.sampling.seeds == (7, 8, 9)
    assert [(s.index, s.seq_id, s.task.seeds) for s, _ in events] == [(0, 0, (7,)), (1, 1, (8,)), (2, 2, (9,))]
    assert events[0][0] is parent and bench.scheduler.sequences("a") == tuple(s for s, _ in events)
    assert bench.kv.num_free_blocks == 64 - 3
    bench.step()
    assert bench.shape() == [(0, 1), (1, 1), (2, 1)]
    tables = [list(s.block_table) for s in bench.plans[-1].sequences]
    assert len({tuple(t[:2]) for t in tables}) == 1 and len({t[2] for t in tables}) == 3
    assert len(bench.plans[-1].block_copies) == 2
    bench.run()
    assert bench.kv.num_free_blocks == 64


def test_samples_end_on_their_own() -> None:
    bench = Bench()
    bench.draws = {0: [EOS], 1: [50, EOS]}
    bench.add("a", 5, n=3, max_tokens=3, seed=0)
    events = bench.step()
    assert [(s.index, s.finished) for s, _ in events] == [(0, True), (1, False), (2, False)]
    assert [s.finish_reason for s, _ in events] == ["stop", None, None]
    events = bench.step()
    assert [(s.index, s.finished) for s, _ in events] == [(1, True), (2, False)]
    bench.run()
    assert bench.kv.num_free_blocks == 64


def test_samples_that_all_end_at_once() -> None:
    bench = Bench()
    bench.add("a", 5, n=4, max_tokens=1)
    assert [(s.index, s.finish_reason) for s, _ in bench.step()] == [(i, "length") for i in range(4)]
    assert not bench.scheduler.has_work and bench.kv.num_free_blocks == 64


def test_samples_count_against_max_num_seqs_from_the_start() -> None:
    bench = Bench(max_num_seqs=4, max_num_batched_tokens=8)
    bench.add("a", 12, n=3, max_tokens=2)
    bench.add("b", 2, n=2, first=2000, max_tokens=2)
    bench.step()
    bench.step()
    assert bench.shape() == [(0, 4)], "two more samples would be five"
    bench.step()
    bench.step()
    assert bench.shape() == [(1, 2)]
    assert len(bench.run()) == 2


def test_an_abort_gives_everything_back() -> None:
    bench = Bench()
    waiting = bench.add("w", 40, max_tokens=2)
    assert bench.scheduler.abort("w") == [waiting] and waiting.finish_reason == "abort"
    bench.add("a", 6, n=2)
    bench.add("b", 6)
    bench.step()
    assert [s.index for s in bench.scheduler.abort("a")] == [0, 1]
    assert bench.scheduler.abort("a") == [] == bench.scheduler.abort("never")
    bench.step()
    assert [s.request_id for s in bench.scheduler.sequences("b")] == ["b"] and len(bench.shape()) == 1
    bench.scheduler.abort("b")
    assert not bench.scheduler.has_work and bench.kv.num_free_blocks == 64
    bench.scheduler.check_invariants()


def test_one_sample_can_be_ended_by_its_text() -> None:
    bench = Bench()
    bench.add("a", 6, n=2)
    bench.step()
    first, second = bench.scheduler.sequences("a")
    bench.scheduler.finish_sequence(first, "stop", "\n\n")
    assert (first.finish_reason, first.stop_reason) == ("stop", "\n\n")
    assert bench.scheduler.sequences("a") == (second,)
    bench.run()
    assert second.finish_reason == "length" and first.output_token_ids == [106]


def test_a_failed_step_drops_its_requests_and_no_other() -> None:
    bench = Bench(max_num_seqs=2)
    bench.draws = {0: [EOS]}
    bench.add("a", 6, n=2, seed=0)
    bench.step()
    bench.add("b", 6, first=2000)
    bench.add("c", 6, first=3000)
    bench.scheduler.plan()
    dropped = bench.scheduler.fail()
    assert [(s.request_id, s.index) for s in dropped] == [("a", 1), ("b", 0)]
    assert all(s.finish_reason == "error" for s in dropped)
    bench.scheduler.check_invariants()
    assert bench.kv.num_free_blocks == 64 and bench.kv.lookup(list(range(2000, 2007))) == []
    assert {s.request_id for s, _ in bench.run()} == {"c"}


def test_a_sequence_without_a_drawable_token_is_handed_back() -> None:
    bench = Bench()
    first, second = bench.add("a", 6), bench.add("b", 6, first=2000)
    bench.scheduler.plan()
    assert bench.scheduler.commit(StepResult([NOT_DRAWN, 9])) == [first, second]
    assert first.output_token_ids == [] and second.output_token_ids == [9]
    bench.scheduler.finish_sequence(first, "error")
    bench.scheduler.check_invariants()
    assert {s.request_id for s, _ in bench.run()} == {"b"}


def test_nothing_changes_while_two_steps_are_in_flight() -> None:
    bench = Bench()
    bench.add("a", 6)
    bench.scheduler.plan()
    with pytest.raises(AssertionError, match="neither committed nor failed"):
        bench.scheduler.plan()
    assert bench.scheduler.plan_ahead() is not None
    with pytest.raises(AssertionError, match="two steps"):
        bench.scheduler.abort("a")
    with pytest.raises(AssertionError):
        bench.add("b", 6)


def test_no_work_is_an_empty_plan() -> None:
    bench = Bench()
    plan = bench.scheduler.plan()
    assert plan == StepPlan(()) and plan.num_tokens == 0
    assert bench.scheduler.commit(StepResult([])) == []


@pytest.mark.parametrize(
    ("num_prompt", "params", "param", "words"),
    [
        (0, {}, "prompt", "at least one token"),
        (64, {}, "prompt", "max_model_len"),
        (41, {}, "prompt", "KV cache holds 40"),
        (30, {"max_tokens": 12}, "max_tokens", "at most 11"),
        (30, {"n": 9}, "n", "max_num_seqs"),
        (38, {"max_tokens": None, "min_tokens": 4}, "min_tokens", "room for 3"),
    ],
)
def test_what_can_never_fit_is_refused(num_prompt: int, params: Any, param: str, words: str) -> None:
    bench = Bench(num_blocks=10)
    with pytest.raises(InvalidRequestError, match=words) as refusal:
        bench.add("a", num_prompt, **params)
    assert refusal.value.param == param
    assert not bench.scheduler.has_work


def test_max_tokens_is_resolved_within_context_and_pool() -> None:
    small = Bench(num_blocks=10).scheduler
    assert small.check_fits(30, SamplingParams(max_tokens=None)) == 11
    assert small.check_fits(40, SamplingParams(max_tokens=1)) == 1
    large = Bench().scheduler
    assert large.check_fits(60, SamplingParams(max_tokens=None)) == 4
    assert large.check_fits(60, SamplingParams(max_tokens=100)) == 4
    assert large.check_fits(10, SamplingParams(max_tokens=16)) == 16


def test_the_context_ends_a_request_with_length() -> None:
    bench = Bench(max_model_len=12)
    sequence = bench.add("a", 9, max_tokens=None)
    bench.run()
    assert sequence.finish_reason == "length" and len(sequence.token_ids) == 12
