"""A scheduler's life in which each step is planned while the one before is computed, as far as that can be."""

from __future__ import annotations

from collections import Counter
from copy import copy
from dataclasses import replace

from paged_backend.kv.cache_usage import CacheUsage
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import NOT_YET_DRAWN, ScheduledSequence, StepPlan
from tests.property.scheduler_life import SchedulerLife


class OverlappedLife(SchedulerLife):
    """Plans are read when they are made, and computed one step later, with the tokens that are known by then.

    What has ended in between writes garbage where it was to write, so whoever comes after it must not see it.

    Attributes:
        launched: the plan in flight between steps; None where the next must be planned yet.
        num_ahead, num_struck: steps that were planned ahead, and sequences that they computed for nobody.
    """

    def begin(self) -> None:
        super().begin()
        self.launched: StepPlan | None = None
        self.num_ahead = self.num_struck = 0
        self.num_steps_of: Counter[str] = Counter()
        self.usages: dict[str, CacheUsage] = {}

    def submit(self, prompt: tuple[int, ...], params: SamplingParams, **kwargs: object) -> None:  # type: ignore[override]
        num_requests = len(self.requests)
        super().submit(prompt, params, **kwargs)  # type: ignore[arg-type]
        if len(self.requests) > num_requests:
            request_id = list(self.requests)[-1]
            (sequence,) = self.scheduler.sequences(request_id)
            self.usages[request_id] = sequence.table.usage

    def plan(self) -> StepPlan:
        """The step in flight, or a new one."""
        if self.launched is None:
            self.launched = snapshot(super().plan())
        return self.launched

    def plan_next(self) -> None:
        """Plans ahead, which changes nothing between steps where it cannot be done."""
        in_flight = self.plan()
        before = self.kv.pool.free_blocks(), list(self.kv.pool.ref_counts), self.kv.stats()
        ahead = self.scheduler.plan_ahead()
        self.launched = None
        if ahead is None:
            assert before == (self.kv.pool.free_blocks(), list(self.kv.pool.ref_counts), self.kv.stats())
            return
        self.num_ahead += 1
        assert ahead.sequences and not ahead.scoring
        assert ahead.num_tokens == sum(len(line.token_ids) for line in ahead.sequences)
        assert ahead.num_tokens <= self.config.max_num_batched_tokens
        if any(NOT_YET_DRAWN in line.token_ids for line in ahead.sequences):
            assert in_flight.draws_unseen, "a token that the device does not know"
        self.launched = snapshot(ahead)

    def ended(self, plan: StepPlan) -> set[int]:
        """Sequences of a plan that are no more."""
        live = {s.seq_id for request in self.live() for s in self.scheduler.sequences(request.request_id)}
        return {line.seq_id for line in plan.sequences} - live

    def resolved(self, plan: StepPlan, ended: set[int]) -> StepPlan:
        """A plan with the tokens that the step before it drew."""
        lines = []
        for line in plan.sequences:
            if line.seq_id not in ended and NOT_YET_DRAWN in line.token_ids:
                assert line.sampling is not None and line.sampling.token_ids[-1] == NOT_YET_DRAWN
                token = self.known(line.seq_id).token_ids[line.num_computed_tokens]
                task = copy(line.sampling)
                task.token_ids = [*task.token_ids[:-1], token]
                line = ScheduledSequence(line.seq_id, (token,), line.num_computed_tokens, line.block_table, task)
            lines.append(line)
        return replace(plan, sequences=tuple(lines))

    def step(self) -> None:
        self.step_without(self.plan(), -1)

    def step_without(self, plan: StepPlan, seq_id: int) -> None:
        self.plan_next()
        ended = self.ended(plan)
        self.num_struck += len(ended)
        self.count(plan, ended)
        result = self.executor.run(self.resolved(plan, ended), undrawable=seq_id, ended=ended)
        result, num_tokens = self.scheduler.strike(result)
        assert num_tokens == sum(len(line.token_ids) for line in plan.sequences if line.seq_id not in ended)
        self.note_scores(plan, result)
        owners = self.scheduler.commit(result)
        assert all(sequence.seq_id not in ended for sequence in owners)
        for sequence, token_id in sorted(zip(owners, result.token_ids, strict=True), key=lambda pair: -pair[1]):
            self.book(sequence, token_id)

    def failing_step(self, *, moved: bool) -> None:
        plan = self.plan()
        self.plan_next()
        ended = self.ended(plan)
        lost = [line for line in plan.sequences if line.seq_id not in ended]
        self.count(plan, ended)
        if self.launched is not None and self.launched.transfers.swap_ins:
            lost += self.launched.sequences
        self.executor.break_off(plan, moved=moved)
        hit = {self.request_of(line.seq_id).request_id for line in lost}
        dropped = self.scheduler.fail()
        assert {sequence.request_id for sequence in dropped} == hit
        for request_id in hit:
            self.requests[request_id].end("error")

    def count(self, plan: StepPlan, ended: set[int]) -> None:
        lines = [line for line in plan.sequences if line.seq_id not in ended]
        self.num_steps_of.update({self.request_of(line.seq_id).request_id for line in lines})

    def check(self) -> None:
        super().check()
        for request_id, usage in self.usages.items():
            if usage.is_settled:
                assert usage.num_steps == self.num_steps_of[request_id]

    def check_index(self) -> None:
        unfilled = [] if self.launched is None else [slot for _, slot in self.launched.transfers.swap_outs]
        for request in self.requests.values():
            self.executor.check_pool(self.kv, request.prompt, request.salt)
            self.executor.check_host(self.kv, request.prompt, request.salt, unfilled)

    def drain(self) -> None:
        super().drain()
        if self.launched is not None:  # for nobody
            self.step()
        self.check()


def snapshot(plan: StepPlan) -> StepPlan:
    """A plan as it is now, whatever becomes of its lines."""
    lines = []
    for line in plan.sequences:
        task = copy(line.sampling)
        if task is not None:
            task.token_ids = list(task.token_ids)
        block_table = list(line.block_table)
        lines.append(ScheduledSequence(line.seq_id, tuple(line.token_ids), line.num_computed_tokens, block_table, task))
    return replace(plan, sequences=tuple(lines))
