"""Everything at once, always the same: chunks, beams, fair shares, swaps, restarts and faults in a small pool."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest

from paged_backend.sampling_params import SamplingParams
from tests.property.known_requests import MAX_MODEL_LEN, TEXTS
from tests.property.scheduler_life import SchedulerLife, Shape

NUM_LIVES = 12
NUM_EVENTS = 160

EVENTS = {
    "submit": 30,
    "step": 50,
    "abort": 3,
    "stop string": 3,
    "failing step": 1,
    "undrawable": 1,
    "read from disk": 8,
    "restart": 2,
    "questions": 2,
}
"""What happens, and how often."""


def random_shape(draw: Random, policy: str) -> Shape:
    """Room for a few requests, of which the longest just fit; steps that take a prompt in several chunks."""
    block_size = draw.randint(2, 4)
    return Shape(
        num_blocks=-(-MAX_MODEL_LEN // block_size) + draw.randint(1, 5),
        block_size=block_size,
        max_num_seqs=draw.randint(4, 8),
        spare_budget=draw.randint(0, 6),
        policy=policy,
        windows=draw.choice([(0,), (0,), (0, 6), (5,)]),
        num_host_slots=draw.choice([4, 12, 40]),
        preemption_mode=draw.choice(["swap", "swap", "recompute"]),
    )


def random_request(draw: Random) -> dict[str, Any]:
    """A prompt that others begin like, plain, in samples or searched; who sends it, and how urgent it is."""
    n = draw.choice([1, 1, 1, 2, 3])
    max_tokens = draw.randint(1, 14)
    asked: dict[str, Any] = {"n": n, "max_tokens": max_tokens, "ignore_eos": draw.random() < 0.5}
    if draw.random() < 0.35:
        asked |= {"use_beam_search": True, "best_of": n + draw.randint(0, 2), "early_stopping": draw.random() < 0.3}
    else:
        asked |= {"min_tokens": draw.randint(0, min(3, max_tokens))}
    return {
        "prompt": draw.choice(TEXTS)[: draw.randint(1, 10)],
        "params": SamplingParams(**asked),
        "seed": draw.randrange(4),
        "salt": draw.choice([None, None, "salt"]),
        "priority": draw.randint(-1, 1),
        "tenant": draw.choice(["often", "often", "often", "seldom", "other"]),
    }


def happen(life: SchedulerLife, draw: Random, event: str) -> int:
    """Makes an event happen; how often: blocks that are read, or 0 where there is nothing for it to happen to."""
    if event == "submit":
        life.submit(**random_request(draw))
    elif event == "questions":
        life.ask()
    elif event == "restart":
        life.restart(orderly=draw.random() < 0.5)
    elif event == "read from disk":
        if not life.requests:
            return 0
        return life.read_from_disk(draw.choice(list(life.requests.values())), num_lost=draw.choice([0, 0, 1]))
    elif event == "stop string":
        if not life.stoppable():
            return 0
        life.stop_string(draw.choice(life.stoppable()))
    elif not life.live():
        return 0
    elif event == "abort":
        life.abort(draw.choice(life.live()))
    elif event == "failing step":
        life.failing_step(moved=draw.random() < 0.5)
    elif event == "undrawable":
        plan = life.plan()
        life.step_without(plan, draw.choice(plan.sequences).seq_id)
    else:
        life.step()
    return 1


def counts(life: SchedulerLife) -> Counter[str]:
    """What the life has seen, as far as it is counted."""
    scheduler = life.scheduler
    hits = life.kv.stats().offload.hits
    return Counter(preempted=scheduler.num_preemptions, swapped=scheduler.num_swaps, from_host=hits)


@pytest.mark.parametrize("policy", ["fcfs", "priority", "fair"])
def test_everything_at_once(policy: str) -> None:
    seen = Counter[str]()
    for seed in range(NUM_LIVES):
        draw = Random(f"{policy} {seed}")
        life = SchedulerLife(random_shape(draw, policy))
        for event in draw.choices(list(EVENTS), list(EVENTS.values()), k=NUM_EVENTS):
            before = counts(life)
            seen[event] += happen(life, draw, event)
            life.check()
            seen += counts(life) - before  # none of those that a restart has set back to nothing
        life.drain()
        seen["ended"] += sum(sample.ended in ("stop", "length") for r in life.requests.values() for sample in r.samples)
    least = {"ended": 250, "preempted": 40, "swapped": 20, "from_host": 50, "restart": 10, "read from disk": 20}
    assert all(seen[what] >= count for what, count in least.items()), seen


@pytest.mark.parametrize("orderly", [True, False])
def test_a_restart_finds_what_is_on_disk(orderly: bool) -> None:
    """All blocks after an end in good order; else those that the pool had to forget, which others took the place of."""
    life = SchedulerLife(Shape(num_blocks=8, block_size=3, max_num_seqs=2, spare_budget=4, num_host_slots=8))
    prompt, params = TEXTS[0][:14], SamplingParams(max_tokens=4, ignore_eos=True)
    texts = [prompt] if orderly else [prompt, TEXTS[2][:20]]
    for text in texts:
        life.submit(text, params, seed=0, salt="salt", priority=0, tenant="")
        life.drain()
    assert len(life.executor.disk) == (0 if orderly else 5)
    life.restart(orderly=orderly)
    assert life.kv.lookup(prompt, "salt") == []
    assert life.read_from_disk(life.requests["r0"]) == 4
    life.submit(prompt, params, seed=0, salt="salt", priority=0, tenant="")
    (sequence,) = life.scheduler.sequences(f"r{len(texts)}")
    life.step()
    assert sequence.num_cached_tokens == 12
    life.drain()
