"""transformers' continuous batching: a manager with a paged cache, all requests added at once.

Settings: `dtype`, `attention` (a paged implementation), `max_requests_per_batch`, `max_batch_tokens`, `page_size`
(tokens). The cache is made large enough for the whole workload, so that nothing waits for memory.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import transformers
from transformers import ContinuousBatchingConfig

from benchmarks.peers.contract import Job, Outcome, Stopwatch, main
from benchmarks.workloads import BenchRequest


def run(job: Job) -> Outcome:
    """Starts the manager, answers the warm-up and then the workload with it."""
    torch.set_num_threads(job.num_threads)
    settings = job.settings
    model = transformers.AutoModelForCausalLM.from_pretrained(
        job.model, dtype=getattr(torch, settings["dtype"]), attn_implementation=settings.get("attention", "sdpa")
    )
    page_size = settings.get("page_size", 256)
    generation_config: Any = model.generation_config
    generation_config.update(do_sample=False, eos_token_id=-1, pad_token_id=1, max_new_tokens=1)
    manager = model.init_continuous_batching(
        generation_config=generation_config,
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=page_size,
            num_blocks=sum(-(-_num_tokens(request) // page_size) for request in job.requests) + 8,
            max_batch_tokens=settings.get("max_batch_tokens", 512),
            max_requests_per_batch=settings.get("max_requests_per_batch", len(job.requests)),
            use_cuda_graph=False,
            allow_block_sharing=False,
        ),
    )
    manager.start()
    try:
        generate(manager, job.warm_up(), "warm-up")
        watch = Stopwatch()
        output_token_ids = generate(manager, job.requests, "request")
        seconds, cpu_s = watch.stop()
    finally:
        with contextlib.suppress(Exception):  # what was measured counts, not how it stops
            manager.stop(block=True, timeout=5)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    return Outcome(seconds, output_token_ids, cpu_s, versions, {"attention": model.config._attn_implementation})


def _num_tokens(request: BenchRequest) -> int:
    return len(request.prompt_token_ids) + request.num_output_tokens


def generate(manager: Any, requests: list[BenchRequest], prefix: str) -> list[list[int]]:
    """The output tokens of each request; no two calls with the same prefix."""
    for index, request in enumerate(requests):
        manager.add_request(
            request.prompt_token_ids, f"{prefix}-{index}", max_new_tokens=request.num_output_tokens, eos_token_id=-1
        )
    answers: dict[str, list[int]] = {}
    while len(answers) < len(requests):
        result = manager.get_result(timeout=1.0)
        if result is None:
            if not manager.is_running():
                raise RuntimeError("the manager's thread has ended; its messages above say why")
        elif result.is_finished():
            if result.error is not None:
                raise RuntimeError(f"{result.request_id}: {result.error}")
            answers[result.request_id] = list(result.generated_tokens)
    return [answers[f"{prefix}-{index}"] for index in range(len(requests))]


if __name__ == "__main__":
    main(run)
