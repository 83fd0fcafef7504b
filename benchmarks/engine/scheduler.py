"""What the scheduler's Python costs per step: plan and commit of running decodes, without any model.

    python benchmarks/engine/scheduler.py [--seqs 256] [--steps 400] [--output FILE]

Ends in one JSON object. Times are the thread's CPU time, medians over steps; `step_best_us` is the
best step, which a shared machine disturbs least.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path

from paged_backend.config import SchedulerConfig
from paged_backend.kv.manager import KVCacheManager
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import StepPlan, StepResult
from paged_backend.scheduler.scheduler import Scheduler

BLOCK_SIZE = 16
PROMPT_TOKENS = 64


def main() -> None:
    """Runs both measurements and prints them."""
    parser = argparse.ArgumentParser(description="Plan and commit times, without a model.")
    parser.add_argument("--seqs", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    report = {
        "benchmark": "engine/scheduler",
        "python": sys.version.split()[0],
        "block_size": BLOCK_SIZE,
        "decode": [measure_decode(num_seqs, args.steps) for num_seqs in args.seqs],
        "admission": [measure_admission(num_tokens) for num_tokens in (128, 1024, 8192)],
    }
    text = json.dumps(report, indent=2)
    if args.output is not None:
        args.output.write_text(text + "\n")
    print(text)


def measure_decode(num_seqs: int, num_steps: int) -> dict[str, float]:
    """Plan and commit of a steady batch, a token per sequence and step; block growth is in it."""
    num_tokens = PROMPT_TOKENS + num_steps + 2
    kv = KVCacheManager(num_seqs * -(-num_tokens // BLOCK_SIZE), BLOCK_SIZE)
    config = SchedulerConfig(max_num_seqs=num_seqs, max_num_batched_tokens=num_seqs * PROMPT_TOKENS)
    scheduler = Scheduler(config, kv, num_tokens, (2,))
    params = SamplingParams(max_tokens=num_steps + 2)
    draw = random.Random(0)
    for i in range(num_seqs):
        prompt = [draw.randrange(10, 30000) for _ in range(PROMPT_TOKENS)]
        scheduler.add(str(i), prompt, params, seed=i)
    scheduler.commit(drawn(scheduler.plan()))
    plan_s, commit_s = [], []
    for _ in range(num_steps):
        start = time.thread_time()
        plan = scheduler.plan()
        planned = time.thread_time()
        result = drawn(plan)
        sampled = time.thread_time()
        scheduler.commit(result)
        commit_s.append(time.thread_time() - sampled)
        plan_s.append(planned - start)
        assert len(plan.sequences) == num_seqs
    both = sorted(a + b for a, b in zip(plan_s, commit_s, strict=True))
    return {
        "num_seqs": num_seqs,
        "plan_us": round(statistics.median(plan_s) * 1e6, 1),
        "commit_us": round(statistics.median(commit_s) * 1e6, 1),
        "step_us": round(statistics.median(both) * 1e6, 1),
        "step_best_us": round(both[0] * 1e6, 1),
        "step_p99_us": round(both[int(len(both) * 0.99)] * 1e6, 1),
        "per_sequence_us": round(statistics.median(both) / num_seqs * 1e6, 3),
    }


def measure_admission(num_tokens: int, repeats: int = 50) -> dict[str, float]:
    """Adding and planning one prompt: from a cold index, and where all its blocks but the last are found."""
    kv = KVCacheManager(2 * -(-num_tokens // BLOCK_SIZE), BLOCK_SIZE)
    config = SchedulerConfig(max_num_seqs=1, max_num_batched_tokens=num_tokens)
    scheduler = Scheduler(config, kv, num_tokens + 1, ())
    draw = random.Random(1)
    times: dict[str, list[float]] = {"cold": [], "warm": []}
    for i in range(repeats):
        prompt = [draw.randrange(10, 30000) for _ in range(num_tokens)]
        for kind in ("cold", "warm"):
            start = time.thread_time()
            scheduler.add(f"{kind}{i}", prompt, SamplingParams(max_tokens=1), seed=i)
            plan = scheduler.plan()
            result = drawn(plan)
            scheduler.commit(result)
            times[kind].append(time.thread_time() - start)
    return {
        "num_tokens": num_tokens,
        "cold_us": round(statistics.median(times["cold"]) * 1e6, 1),
        "warm_us": round(statistics.median(times["warm"]) * 1e6, 1),
    }


def drawn(plan: StepPlan) -> StepResult:
    """What an executor would give back: one token for each seed."""
    return StepResult([[7] * len(s.sampling.seeds) for s in plan.sequences if s.sampling])


if __name__ == "__main__":
    main()
