"""How fast the engine stays beside a process that keeps one core busy.

    python -m benchmarks.disturbed [--model smollm2-135m] [--precision bf16] [--rounds 3] [--output FILE]

Runs the same work in turns, alone and beside the busy process, which is started and stopped for each run: the figure is
the median over rounds of disturbed over undisturbed tokens a second. On two cores a fair share is 75 % of them; what
waits for a thread that the system has put aside gets much less.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from benchmarks.engine.settings import add_engine_arguments, engine_args, model_folder, model_name
from benchmarks.machine import num_cores
from benchmarks.report import finish, make_parser, rounded, say
from benchmarks.workloads import WARM_UP_SEED, load_workload
from paged_backend import LLM, SamplingParams

_BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


@contextmanager
def busy_process() -> Iterator[None]:
    """A process that keeps one core busy; it ends with this one whatever happens."""
    process = subprocess.Popen([sys.executable, "-c", _BUSY])
    try:
        time.sleep(0.5)
        yield
    finally:
        process.kill()
        process.wait()


def tokens_per_s(llm: LLM, num_requests: int, num_tokens: int, seed: int) -> float:
    """Output tokens a second of requests that all begin at once, with prompts that no run before had."""
    workload = load_workload(f"fixed-{num_requests}x32x{num_tokens}", llm._client.vocab_size, seed)
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    prompts = [{"prompt_token_ids": request.prompt_token_ids} for request in workload.requests]
    start_s = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return workload.num_output_tokens / (time.perf_counter() - start_s)


def main() -> None:
    """Measures in turns, and ends in JSON."""
    parser = make_parser(__doc__)
    add_engine_arguments(parser)
    parser.add_argument("--requests", type=int, default=16, help="at once (default 16)")
    parser.add_argument("--max-tokens", type=int, default=64, help="of each (default 64)")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median is taken (default 3)")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.max_tokens = 1, 16
    extra = engine_args(args)
    rounds = []
    with LLM(model_folder(args.model), **extra) as llm:
        tokens_per_s(llm, 2, 4, seed=WARM_UP_SEED)
        for number in range(args.rounds):
            speeds: dict[str, float] = {}
            for name, around in (("alone", nullcontext), ("disturbed", busy_process)):
                with around():
                    speeds[name] = tokens_per_s(llm, args.requests, args.max_tokens, seed=2 * number + len(speeds))
            rounds.append({**speeds, "fraction": speeds["disturbed"] / speeds["alone"]})
            say(f"alone {speeds['alone']:.1f}, disturbed {speeds['disturbed']:.1f} tokens/s")
    report = {
        "benchmark": "disturbed",
        "model": model_name(args.model),
        "engine_args": extra,
        "cores": num_cores(),
        "requests": args.requests,
        "max_tokens": args.max_tokens,
        "fraction": statistics.median(one["fraction"] for one in rounds),
        "rounds": rounds,
    }
    finish(rounded(report), args.output)


if __name__ == "__main__":
    main()
