"""What requests are told that they took of the KV cache is what a clock and a look at every table say."""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from paged_backend.kv.cache_usage import CacheUsage
from paged_backend.kv.layer_group import NO_BLOCK
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import StepPlan
from tests.property.scheduler_life import SchedulerLife, Shape
from tests.property.test_scheduler_machine import SchedulerMachine

STEP_NS = 1_000_003
PAUSE_NS = 17


class MeteredLife(SchedulerLife):
    """A life in which time passes within each step and after each event, and who holds what then is looked at."""

    def begin(self) -> None:
        super().begin()
        self.now_ns = 1_700_000_000_000_000_000
        self.kv._clock_ns = lambda: self.now_ns
        self.held_ns: Counter[CacheUsage] = Counter()
        self.num_steps_of: Counter[str] = Counter()
        self.usages: dict[str, CacheUsage] = {}

    def pass_time(self, ns: int) -> None:
        self.now_ns += ns
        for table in self.kv._tables:
            self.held_ns[table.usage] += ns * sum([1 for block in table.block_ids if block != NO_BLOCK])

    def submit(self, prompt: tuple[int, ...], params: SamplingParams, **kwargs: object) -> None:  # type: ignore[override]
        num_requests = len(self.requests)
        super().submit(prompt, params, **kwargs)  # type: ignore[arg-type]
        if len(self.requests) > num_requests:
            request_id = list(self.requests)[-1]
            (sequence,) = self.scheduler.sequences(request_id)
            self.usages[request_id] = sequence.table.usage

    def plan(self) -> StepPlan:
        plan = super().plan()
        self.num_steps_of.update({self.request_of(line.seq_id).request_id for line in plan.sequences})
        self.pass_time(STEP_NS)
        return plan

    def check(self) -> None:
        super().check()
        self.pass_time(PAUSE_NS)
        for request_id, usage in self.usages.items():
            assert usage.is_settled == (not self.runs(self.requests[request_id]))
            if usage.is_settled:
                assert usage.block_ns == self.held_ns[usage]
                assert usage.num_steps == self.num_steps_of[request_id]
        usages = self.usages.values()
        assert sum(usage.num_swaps for usage in usages) == self.scheduler.num_swaps
        assert sum(usage.num_recomputes + usage.num_swaps for usage in usages) == self.scheduler.num_preemptions
        stats = self.kv.stats()
        assert sum(usage.num_external_tokens for usage in usages) == stats.offload.hits

    def drain(self) -> None:
        super().drain()
        self.check()


class MeteredMachine(SchedulerMachine):
    """Leads one."""

    kind = MeteredLife


def test_random_lives_add_up() -> None:
    run_state_machine_as_test(
        MeteredMachine,
        settings=settings(
            max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_a_request_with_samples_and_a_preemption() -> None:
    """By hand: blocks of 2 tokens; 3 tokens of prompt are 2 blocks, which two samples then hold both."""
    life = MeteredLife(Shape(num_blocks=6, block_size=2, max_num_seqs=4, spare_budget=8, caching=False))
    params = SamplingParams(n=2, max_tokens=2, ignore_eos=True)
    life.submit((1, 2, 3), params, seed=0, salt=None, priority=0, tenant="")
    usage = life.usages["r0"]
    life.step()  # 2 blocks for the prompt
    life.step()  # the samples' first tokens go into the second block, of which one takes a copy: 2 blocks each
    assert life.scheduler.num_requests == 0 and usage.is_settled
    assert (usage.num_steps, usage.block_ns) == (2, (2 + 4) * STEP_NS)
