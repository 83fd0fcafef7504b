"""Between tenants that both keep requests waiting, the service that they get differs by a constant, however long.

Services are counted here, from plans and drawn tokens alone; the bound is the one that the virtual token counter
promises (Sheng et al., OSDI 2024): twice what one tenant can be ahead of its last turn.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paged_backend.config import SchedulerConfig
from paged_backend.kv.manager import KVCacheManager
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.fair_queue import INPUT_COST, OUTPUT_COST
from paged_backend.scheduler.plan import StepResult
from paged_backend.scheduler.scheduler import Scheduler

MAX_NUM_SEQS = 4
LONGEST_PROMPT = 24
MOST_TOKENS = 20
NUM_STEPS = 300

BOUND = 2 * (INPUT_COST * LONGEST_PROMPT + OUTPUT_COST * MAX_NUM_SEQS * MOST_TOKENS)


class Server:
    """A scheduler whose model draws anything, and a count of what each tenant got of it."""

    def __init__(self, policy: str, num_blocks: int, budget: int = 16) -> None:
        config = SchedulerConfig(
            max_num_seqs=MAX_NUM_SEQS, max_num_batched_tokens=budget, scheduling_policy=policy, max_num_queued_reqs=None
        )
        # No prefix cache: a prompt's cost is then its length.
        self.scheduler = Scheduler(config, KVCacheManager(num_blocks, 4, False), max_model_len=64)
        self.service: Counter[str] = Counter()
        self.num_waiting: Counter[str] = Counter()
        self.num_ended: Counter[str] = Counter()
        self._tenants: dict[int, str] = {}
        self._waiting: dict[int, int] = {}  # prompt tokens of those without a step, by sequence
        self._numbers = itertools.count()

    def submit(self, tenant: str, num_prompt: int, num_outputs: int, n: int = 1) -> None:
        params = SamplingParams(max_tokens=num_outputs, ignore_eos=True, n=n)
        number = next(self._numbers)
        sequence = self.scheduler.add(f"r{number}", [number] * num_prompt, params, seed=number, tenant=tenant)
        self._tenants[sequence.seq_id] = tenant
        self._waiting[sequence.seq_id] = num_prompt
        self.num_waiting[tenant] += 1

    def step(self) -> None:
        plan = self.scheduler.plan()
        for line in plan.sequences:
            if line.seq_id in self._waiting:
                tenant = self._tenants[line.seq_id]
                self.service[tenant] += INPUT_COST * self._waiting.pop(line.seq_id)
                self.num_waiting[tenant] -= 1
        drawn = sum(len(line.sampling.seeds) for line in plan.sequences if line.sampling is not None)
        for sequence in self.scheduler.commit(StepResult([7] * drawn)):
            self.service[sequence.tenant] += OUTPUT_COST
            self.num_ended[sequence.tenant] += sequence.finished
        self.scheduler.check_invariants()


def shape(draw: random.Random, kind: str) -> dict[str, Any]:
    """One request of a tenant of this kind."""
    if kind == "long prompts":
        return {"num_prompt": LONGEST_PROMPT, "num_outputs": draw.randint(1, 3)}
    if kind == "long outputs":
        return {"num_prompt": draw.randint(1, 3), "num_outputs": MOST_TOKENS}
    if kind == "samples":
        return {"num_prompt": draw.randint(1, 8), "num_outputs": draw.randint(1, MOST_TOKENS), "n": draw.randint(1, 4)}
    return {"num_prompt": draw.randint(1, LONGEST_PROMPT), "num_outputs": draw.randint(1, MOST_TOKENS)}


KINDS = st.sampled_from(["any", "long prompts", "long outputs", "samples"])


@settings(max_examples=25, deadline=None)
@given(
    kinds=st.lists(KINDS, min_size=2, max_size=4),
    num_blocks=st.integers(11, 40),
    budget=st.integers(MAX_NUM_SEQS, 40),
    head_start=st.integers(0, 150),
    seed=st.integers(0, 1000),
)
def test_service_of_backlogged_tenants_differs_by_a_constant(
    kinds: list[str], num_blocks: int, budget: int, head_start: int, seed: int
) -> None:
    draw = random.Random(seed)
    server = Server("fair", num_blocks, budget)
    tenants = {f"tenant {i}": kind for i, kind in enumerate(kinds)}
    first = next(iter(tenants))
    history: list[Counter[str]] = []
    for step in range(NUM_STEPS):
        for tenant, kind in tenants.items():
            # The first has a queue from the start, the others come later: what it had before does not count. A step
            # cannot take all that wait: who has nothing in the queue is away, and lifted on coming back.
            while (step >= head_start or tenant == first) and server.num_waiting[tenant] <= MAX_NUM_SEQS:
                server.submit(tenant, **shape(draw, kind))
        server.step()
        if step >= head_start:
            history.append(server.service.copy())
    for one, other in itertools.combinations(tenants, 2):
        ahead = [service[one] - service[other] for service in history]
        # The widest swing between any two moments is the largest difference of service over any interval.
        assert max(ahead) - min(ahead) <= BOUND
    if server.scheduler.num_preemptions == 0:
        assert all(server.num_ended[tenant] for tenant in tenants)


@settings(max_examples=25, deadline=None)
@given(
    policy=st.sampled_from(["fair", "fcfs"]),
    num_blocks=st.integers(11, 24),
    arrivals=st.lists(st.tuples(st.integers(0, 3), KINDS, st.integers(0, 6)), max_size=40),
    seed=st.integers(0, 1000),
)
def test_every_request_ends(policy: str, num_blocks: int, arrivals: list[tuple[int, str, int]], seed: int) -> None:
    draw = random.Random(seed)
    server = Server(policy, num_blocks)
    for tenant, kind, pause in arrivals:
        server.submit(f"tenant {tenant}", **shape(draw, kind))
        for _ in range(pause):
            if server.scheduler.has_work:
                server.step()
    for _ in range(40 * len(arrivals) * MOST_TOKENS):
        if not server.scheduler.has_work:
            break
        server.step()
    assert not server.scheduler.has_work and server.scheduler.num_requests == 0
    assert server.scheduler.kv.num_free_blocks == num_blocks


@pytest.mark.parametrize(("policy", "is_fair"), [("fair", True), ("fcfs", False)])
def test_a_flood_does_not_hold_up_the_others(policy: str, is_fair: bool) -> None:
    server = Server(policy, num_blocks=64)
    for _ in range(200):
        server.submit("flood", 8, 10)
    for _ in range(5):
        server.submit("guest", 8, 10)
    for _ in range(60):
        server.step()
    assert (server.num_ended["guest"] == 5) == is_fair


def test_one_that_starts_again_and_again_cannot_starve_another() -> None:
    """A tenant that sends its next request only when the last has ended gets no more than its share."""
    server = Server("fair", num_blocks=64, budget=8)
    server.submit("single", 4, 20)
    for _ in range(2000):
        while server.num_waiting["crowd"] < 5:
            server.submit("crowd", 4, 5)
        if server.num_ended["single"] and not server.num_waiting["single"]:
            server.num_ended["single"] = 0
            server.submit("single", 4, 20)
        server.step()
    assert server.service["crowd"] > server.service["single"] > 0
