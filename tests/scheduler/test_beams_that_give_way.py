"""Searches that take turns in a cache that is too small for all, by every policy."""

from __future__ import annotations

import pytest

from paged_backend.config import SchedulerConfig
from paged_backend.kv.manager import KVCacheManager
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.scheduler import Scheduler
from tests.property.simulated_executor import EOS, Known, SimulatedExecutor, search_alone

PROMPTS = {"a": (1, 2, 3), "b": (4, 5), "c": (6, 6, 6, 1)}
MAX_TOKENS = 12


@pytest.mark.parametrize("policy", ["fcfs", "fair"])
def test_they_find_the_same_and_every_beam_has_an_index_of_its_own(policy: str) -> None:
    kv = KVCacheManager(num_blocks=15, block_size=3, key=b"test")
    config = SchedulerConfig(max_num_seqs=9, max_num_batched_tokens=14, scheduling_policy=policy)
    scheduler = Scheduler(config, kv, 24, {EOS})

    def known(seq_id: int) -> Known:
        everyone = (sequence for name in PROMPTS for sequence in scheduler.sequences(name))
        return next(Known(tuple(s.token_ids), None) for s in everyone if s.seq_id == seq_id)

    executor = SimulatedExecutor(15, 3, known)
    params = SamplingParams(n=3, use_beam_search=True, ignore_eos=True, max_tokens=MAX_TOKENS)
    groups = {name: scheduler.add(name, prompt, params, seed=0, tenant=name).group for name, prompt in PROMPTS.items()}
    while scheduler.has_work:
        plan = scheduler.plan()
        in_chunks = {line.seq_id for line in plan.sequences if line.sampling is None}
        # What is free is left to the search whose beams have tokens to compute again, though the budget is not used up.
        assert sum(any(s.seq_id in in_chunks for s in scheduler.sequences(name)) for name in PROMPTS) <= 1
        scheduler.commit(executor.run(plan))
        scheduler.check_invariants()
    assert scheduler.num_preemptions > 1 and kv.num_free_blocks == kv.num_blocks
    for name, prompt in PROMPTS.items():
        group = groups[name]
        assert group is not None
        found = [(tuple(beam.token_ids), beam.finish_reason, beam.stop_reason) for beam in group.best]
        assert found == search_alone(prompt, params, MAX_TOKENS)
