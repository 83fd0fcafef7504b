"""How much of the KV cache samples and beams of one request save by sharing blocks, step by step.

    python -m benchmarks.engine.sharing [--workload lognormal-48] [--model paged-tiny] [--output FILE]

After each step: saved = blocks that the sequences would hold without sharing, less those that are held, over the first,
as in arXiv:2309.06180 (figure 15, which has 6 to 10 % for samples and 38 to 55 % for beams, on its workloads). The
prefix cache is off: only what sequences of one request share counts. Prompts have the workload's lengths and hold text
of the model's own, as beams over random tokens would part at once. `weighted` is over all steps' blocks, `bytes` are
those held at the height, with and without sharing.
"""

from __future__ import annotations

from typing import Any

from benchmarks.report import finish, make_parser, rounded, say
from benchmarks.workloads import load_workload
from paged_backend.config import EngineConfig
from paged_backend.executor.executor import Executor
from paged_backend.kernels.cache_layout import block_bytes
from paged_backend.kv.manager import KVCacheManager
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.scheduler import Scheduler

MAX_PROMPT_TOKENS = 256
NUM_OUTPUT_TOKENS = 128
FIRST_TOKEN = 100
KINDS = {
    "8 samples": SamplingParams(n=8, temperature=1.0, max_tokens=NUM_OUTPUT_TOKENS),
    "4 beams": SamplingParams(n=4, use_beam_search=True, max_tokens=NUM_OUTPUT_TOKENS),
}


def main() -> None:
    """Runs both kinds and reports."""
    parser = make_parser(__doc__)
    parser.add_argument("--workload", default="lognormal-48")
    parser.add_argument("--model", default="paged-tiny")
    args = parser.parse_args()
    config = EngineConfig.from_args(
        {"enable_prefix_caching": False, "max_num_seqs": 64, "num_threads": 1}, model=args.model
    )
    executor = Executor(config)
    requests = load_workload(args.workload, executor.vocab_size).requests[: 4 if args.quick else None]
    prompts = own_texts(executor, config, [min(len(r.prompt_token_ids), MAX_PROMPT_TOKENS) for r in requests])
    runs = []
    for kind, params in KINDS.items():
        result = run(executor, config, prompts, params)
        runs.append({"kind": kind, **result})
        held, named = result["max_held_blocks"], result["max_named_blocks"]
        say(f"{kind}: {result['weighted']:.1%} saved, at most {held} blocks in place of {named}")
    finish({"benchmark": "engine/sharing", "workload": args.workload, "runs": rounded(runs)}, args.output)


def own_texts(executor: Executor, config: EngineConfig, lengths: list[int]) -> list[list[int]]:
    """Texts of these lengths that the model says by itself."""
    texts: dict[str, list[int]] = {}
    kv = KVCacheManager(executor.num_blocks, executor.block_size, enable_prefix_caching=False)
    scheduler = Scheduler(config.scheduler, kv, executor.max_model_len)
    for i, length in enumerate(lengths):
        params = SamplingParams(max_tokens=length, ignore_eos=True)
        scheduler.add(str(i), [FIRST_TOKEN + i], params, seed=i)
    while scheduler.has_work:
        for sequence in scheduler.commit(executor.run(scheduler.plan())):
            texts[sequence.request_id] = sequence.output_token_ids
    return [texts[str(i)] for i in range(len(lengths))]


def run(executor: Executor, config: EngineConfig, prompts: list[list[int]], params: SamplingParams) -> dict[str, Any]:
    """All prompts, from the first step to the last."""
    kv = KVCacheManager(executor.num_blocks, executor.block_size, enable_prefix_caching=False)
    scheduler = Scheduler(config.scheduler, kv, executor.max_model_len, executor.eos_token_ids)
    for i, prompt in enumerate(prompts):
        scheduler.add(str(i), prompt, params, seed=1000 * i)
    held: list[int] = []
    named: list[int] = []
    while scheduler.has_work:
        scheduler.commit(executor.run(scheduler.plan()))
        held.append(kv.stats().num_used_blocks)
        named.append(sum(kv.pool.ref_counts))
    return {
        "num_steps": len(held),
        "weighted": 1.0 - sum(held) / sum(named),
        "max_held_blocks": max(held),
        "max_named_blocks": max(named),
        "bytes": max(held) * num_block_bytes(executor),
        "bytes_without_sharing": max(named) * num_block_bytes(executor),
        "num_preemptions": scheduler.num_preemptions,
        "mean_prompt_tokens": sum(map(len, prompts)) / len(prompts),
    }


def num_block_bytes(executor: Executor) -> int:
    """Keys and values of a block in all layers."""
    model = executor.architecture
    one = block_bytes(executor.kv_cache_dtype, model.num_kv_heads, executor.block_size, model.head_dim)
    return 2 * model.num_layers * one


if __name__ == "__main__":
    main()
