"""Random lives of random requests over a tiny cache: every block, every token and every end is checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from paged_backend.sampling_params import SamplingParams
from tests.property.known_requests import MAX_MODEL_LEN, TEXTS
from tests.property.scheduler_life import SchedulerLife, Shape
from tests.property.simulated_executor import VOCAB_SIZE


class SchedulerMachine(RuleBasedStateMachine):
    """Leads a `SchedulerLife`, or one that looks at more."""

    kind: type[SchedulerLife] = SchedulerLife
    life: SchedulerLife | None = None

    @initialize(
        shape=st.builds(
            Shape,
            num_blocks=st.integers(2, 14),
            block_size=st.integers(1, 5),
            max_num_seqs=st.integers(1, 6),
            spare_budget=st.integers(0, 20),
            policy=st.sampled_from(["fcfs", "priority", "fair"]),
            caching=st.booleans() | st.just(True),
            windows=st.just((0,)) | st.lists(st.just(0) | st.integers(2, 12), min_size=1, max_size=3).map(tuple),
            num_host_slots=st.sampled_from([0, 0, 1, 2, 5, 30]),
            preemption_mode=st.sampled_from(["recompute", "swap", "swap"]),
            max_scored=st.sampled_from([1, 3, 100]),
        )
    )
    def build(self, shape: Shape) -> None:
        self.life = self.kind(shape)

    @property
    def led(self) -> SchedulerLife:
        assert self.life is not None
        return self.life

    @rule(
        text=st.sampled_from(TEXTS),
        length=st.integers(1, MAX_MODEL_LEN),
        n=st.sampled_from([1, 1, 1, 2, 3, 4]),
        max_tokens=st.none() | st.integers(1, 12),
        min_tokens=st.integers(0, 4),
        ignore_eos=st.booleans(),
        stops=st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=1),
        seed=st.integers(0, 3) | st.just(2**63 - 1),
        salt=st.sampled_from([None, None, "", "tenant"]),
        priority=st.integers(-1, 1),
        search=st.none()
        | st.none()
        | st.tuples(st.sampled_from([0.6, 1, 2, -1]), st.sampled_from([False, True, "never"])),
        best_of=st.integers(0, 2),
        tenant=st.sampled_from(["", "a", "b"]),
        prompt_logprobs=st.sampled_from([None, None, 0]),
    )
    def submit(
        self,
        text: tuple[int, ...],
        length: int,
        n: int,
        max_tokens: int | None,
        min_tokens: int,
        ignore_eos: bool,
        stops: list[int],
        seed: int,
        salt: str | None,
        priority: int,
        search: tuple[float, Any] | None,
        best_of: int,
        tenant: str,
        prompt_logprobs: int | None,
    ) -> None:
        if max_tokens is not None:
            min_tokens = min(min_tokens, max_tokens)
        params = SamplingParams(
            n=n,
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            ignore_eos=ignore_eos,
            stop_token_ids=stops,
            prompt_logprobs=prompt_logprobs,
        )
        if search is not None:
            params = replace(
                params, use_beam_search=True, best_of=n + best_of, length_penalty=search[0], early_stopping=search[1]
            )
        self.led.submit(text[:length], params, seed=seed, salt=salt, priority=priority, tenant=tenant)

    @rule(count=st.integers(1, 8))
    def step(self, count: int) -> None:
        for _ in range(count):
            if self.led.scheduler.has_work:
                self.led.step()
                self.led.check_patience()  # which wants to see an end at once

    @precondition(lambda self: self.led.live())
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.led.abort(data.draw(st.sampled_from(self.led.live()), label="request"))

    @precondition(lambda self: self.led.stoppable())
    @rule(data=st.data())
    def stop_string(self, data: st.DataObject) -> None:
        self.led.stop_string(data.draw(st.sampled_from(self.led.stoppable()), label="sample"))

    @precondition(lambda self: self.led.scheduler.has_work)
    @rule(luck=st.integers(0, 3), moved=st.booleans())
    def failing_step(self, luck: int, moved: bool) -> None:
        if luck:  # a fault ends all that runs, so too many of them leave little to test
            self.led.step()
        else:
            self.led.failing_step(moved=moved)

    @precondition(lambda self: self.led.scheduler.has_work)
    @rule(data=st.data())
    def step_with_a_sequence_that_cannot_be_drawn(self, data: st.DataObject) -> None:
        plan = self.led.plan()
        self.led.step_without(plan, data.draw(st.sampled_from([s.seq_id for s in plan.sequences]), label="undrawable"))

    @precondition(lambda self: self.led.kv.offload is not None and self.led.requests)
    @rule(data=st.data(), num_lost=st.integers(0, 2))
    def read_from_disk(self, data: st.DataObject, num_lost: int) -> None:
        self.led.read_from_disk(data.draw(st.sampled_from(list(self.led.requests.values())), label="request"), num_lost)

    @precondition(lambda self: self.led.requests)
    @rule(luck=st.integers(0, 3), orderly=st.booleans())
    def restart(self, luck: int, orderly: bool) -> None:
        if not luck:
            self.led.restart(orderly=orderly)

    @precondition(lambda self: self.led.scheduler.has_work)
    @rule()
    def questions(self) -> None:
        self.led.ask()

    @invariant()
    def books_agree(self) -> None:
        if self.life is not None:
            self.life.check()

    def teardown(self) -> None:
        if self.life is not None:
            self.life.drain()


_QUICK = settings(max_examples=120, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
_LONG = settings(_QUICK, max_examples=1500, stateful_step_count=60)


def test_random_lives() -> None:
    run_state_machine_as_test(SchedulerMachine, settings=_QUICK)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_random_lives_for_long() -> None:
    run_state_machine_as_test(SchedulerMachine, settings=_LONG)
