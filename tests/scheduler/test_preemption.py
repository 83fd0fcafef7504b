"""Swap or compute again: what was measured decides."""

from __future__ import annotations

from paged_backend.config import SchedulerConfig
from paged_backend.kv.host_tier import Transfers
from paged_backend.kv.manager import KVCacheManager
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import ScheduledSequence, StepPlan, StepResult
from paged_backend.scheduler.preemption import PreemptionCosts
from paged_backend.scheduler.scheduler import Scheduler


def step(
    num_tokens: int, compute_s: float, num_blocks: int = 0, transfer_s: float = 0.0
) -> tuple[StepPlan, StepResult]:
    line = ScheduledSequence(0, range(num_tokens), 0, (), None)
    transfers = Transfers(swap_outs=tuple((i, i) for i in range(num_blocks)))
    return StepPlan((line,), transfers=transfers), StepResult((), transfer_s=transfer_s, compute_s=compute_s)


def test_a_mode_decides_by_itself() -> None:
    for mode, expected in (("swap", True), ("recompute", False)):
        costs = PreemptionCosts(mode)
        costs.observe(*step(1000, 5.0, 10, 1e-9))
        assert costs.prefers_swap(100, 7) is expected


def test_nothing_measured_is_computed_again() -> None:
    assert not PreemptionCosts("auto").prefers_swap(1000, 63)


def test_the_cheaper_one() -> None:
    costs = PreemptionCosts("auto")
    costs.observe(*step(100, 0.1))  # a millisecond a token
    costs.observe(*step(101, 0.101, 10, 0.08))  # eight a block
    assert costs.prefers_swap(17, 1), "two blocks' moves for 17 tokens"
    assert not costs.prefers_swap(16, 1)
    assert costs.prefers_swap(64, 3) and not costs.prefers_swap(64, 4)


def test_decodes_say_nothing_of_prompts() -> None:
    costs = PreemptionCosts("auto")
    costs.observe(*step(100, 0.001))
    for _ in range(50):
        costs.observe(*step(1, 10.0))
    assert not costs.prefers_swap(100, 7)


def test_measurements_are_forgotten_in_time() -> None:
    costs = PreemptionCosts("auto")
    costs.observe(*step(100, 0.1, 1, 0.001))
    assert costs.prefers_swap(16, 1)
    for _ in range(30):
        costs.observe(*step(100, 0.1, 1, 0.1))
    assert not costs.prefers_swap(16, 1)


def test_the_scheduler_swaps_where_it_measured_so() -> None:
    for compute_s, num_swaps in ((100.0, 1), (1e-9, 0)):
        kv = KVCacheManager(12, 4, num_host_slots=20)
        scheduler = Scheduler(SchedulerConfig(max_num_seqs=2), kv, 64)
        for name in "ab":
            prompt = range(100 * ord(name), 100 * ord(name) + 20)
            scheduler.add(name, prompt, SamplingParams(max_tokens=20, ignore_eos=True), seed=0)
        while scheduler.num_preemptions == 0:
            plan = scheduler.plan()
            tokens = [7 for line in plan.sequences if line.sampling is not None]
            scheduler.commit(StepResult(tokens, compute_s=compute_s, transfer_s=1.0))
        assert scheduler.num_swaps == num_swaps
