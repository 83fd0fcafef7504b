"""How much of the KV cache is reserved and empty, step by step: the real scheduler and block manager, no model.

    python -m benchmarks.engine.kv_waste [--workload lognormal-48] [--block-sizes 1 8 16 32] [--output FILE]

After each step: waste = slots of held blocks without a token / slots of held blocks, as in arXiv:2309.06180 (figure
2). A last block is half empty on the average, so (block_size - 1) / 2 slots over the mean length is what to
expect. Also with a pool that holds half of what the workload holds at its height (preemption), and with prompts that
share their first 64 tokens. `mean` is over steps, `weighted` is all empty slots over all reserved ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.report import finish, make_parser, rounded, say
from benchmarks.workloads import Workload, load_workload
from paged_backend.config import CacheConfig, SchedulerConfig
from paged_backend.kv.manager import KVCacheManager
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import StepResult
from paged_backend.scheduler.scheduler import Scheduler

VOCAB_SIZE = 49152
SHARED_TOKENS = 64
MAX_SAMPLES_KEPT = 200


def main() -> None:
    """Runs all combinations and reports."""
    parser = make_parser(__doc__)
    parser.add_argument("--workload", default="lognormal-48")
    parser.add_argument("--block-sizes", type=int, nargs="+", default=[1, 8, CacheConfig().block_size, 32])
    args = parser.parse_args()
    workload = load_workload(args.workload, VOCAB_SIZE)
    shared = [replace(r, prompt_token_ids=_share(r.prompt_token_ids)) for r in workload.requests]
    runs = []
    for block_size in args.block_sizes:
        plain = run(workload, block_size, None)
        tight = run(workload, block_size, plain["max_used_blocks"] // 2)
        sharing = run(replace(workload, requests=shared), block_size, None)
        for kind, result in (("ample pool", plain), ("half the pool", tight), ("shared prefix", sharing)):
            runs.append({"kind": kind, "block_size": block_size, **result})
            say(
                f"block size {block_size}, {kind}: mean {result['mean']:.2%}, weighted {result['weighted']:.2%}, "
                f"max {result['max']:.2%}, {result['num_preemptions']} preemptions"
            )
    finish({"benchmark": "engine/kv_waste", "workload": args.workload, "runs": rounded(runs)}, args.output)


def run(workload: Workload, block_size: int, num_blocks: int | None) -> dict[str, Any]:
    """The workload from its first step to its last.

    Args:
        num_blocks: size of the pool; None for one that holds all requests at once.
    """
    max_model_len = workload.max_model_len
    if num_blocks is None:
        num_blocks = len(workload.requests) * -(-max_model_len // block_size)
    kv = KVCacheManager(num_blocks, block_size)
    scheduler = Scheduler(SchedulerConfig(), kv, max_model_len)
    for i, request in enumerate(workload.requests):
        params = SamplingParams(temperature=0.0, max_tokens=request.num_output_tokens, ignore_eos=True)
        scheduler.add(str(i), request.prompt_token_ids, params, seed=i)
    waste: list[float] = []
    lengths: list[float] = []
    num_empty = num_reserved = max_used = step = 0
    while scheduler.has_work:
        plan = scheduler.plan()
        tasks = [line.sampling for line in plan.sequences if line.sampling is not None]
        # A token of the sequence's own, so that outputs share no blocks.
        scheduler.commit(StepResult([(task.seeds[0] * 7919 + step) % VOCAB_SIZE for task in tasks]))
        step += 1
        stats = kv.stats()
        if not stats.num_used_blocks:
            continue
        empty, reserved = kv.num_empty_slots(), stats.num_used_blocks * block_size
        waste.append(empty / reserved)
        lengths.append((reserved - empty) / scheduler.num_running)
        num_empty, num_reserved = num_empty + empty, num_reserved + reserved
        max_used = max(max_used, stats.num_used_blocks)
    every = -(-len(waste) // MAX_SAMPLES_KEPT)
    return {
        "num_blocks": num_blocks,
        "num_steps": step,
        "mean": sum(waste) / len(waste),
        "weighted": num_empty / num_reserved,
        "max": max(waste),
        "max_used_blocks": max_used,
        "mean_cached_tokens_per_sequence": sum(lengths) / len(lengths),
        "num_preemptions": scheduler.num_preemptions,
        "steps_per_sample": every,
        "over_time": waste[::every],
    }


def _share(prompt: list[int]) -> list[int]:
    """The prompt with its beginning replaced by that of all others."""
    shared = list(range(100, 100 + min(SHARED_TOKENS, len(prompt) - 1)))
    return [*shared, *prompt[len(shared) :]]


if __name__ == "__main__":
    main()
