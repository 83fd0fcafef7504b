"""transformers' `generate` in static batches: left padding, and each batch runs to its longest answer.

Requests are taken in their order, as a server without continuous batching would take them from its queue. Settings:
`dtype`, `batch_size`.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers

from benchmarks.peers.contract import Job, Outcome, Stopwatch, main
from benchmarks.workloads import BenchRequest

PAD_TOKEN_ID = 1  # masked out; any would do


def run(job: Job) -> Outcome:
    """Runs batch after batch."""
    torch.set_num_threads(job.num_threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(job.model, dtype=getattr(torch, job.settings["dtype"]))
    model.generation_config.eos_token_id = None  # nothing ends an answer early
    generate(model, job.warm_up(), len(job.warm_up()))
    watch = Stopwatch()
    output_token_ids = generate(model, job.requests, job.settings["batch_size"])
    seconds, cpu_s = watch.stop()
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    return Outcome(seconds, output_token_ids, cpu_s, versions, {"attention": model.config._attn_implementation})


@torch.inference_mode()
def generate(model: Any, requests: list[BenchRequest], batch_size: int) -> list[list[int]]:
    """The output tokens of each request."""
    output_token_ids = []
    for start in range(0, len(requests), batch_size):
        batch = requests[start : start + batch_size]
        longest = max(len(request.prompt_token_ids) for request in batch)
        input_ids = torch.full((len(batch), longest), PAD_TOKEN_ID)
        attention_mask = torch.zeros_like(input_ids)
        for row, request in enumerate(batch):
            first = longest - len(request.prompt_token_ids)
            input_ids[row, first:] = torch.tensor(request.prompt_token_ids)
            attention_mask[row, first:] = 1
        generated = model.generate(
            input_ids=input_ids.to(model.device),
            attention_mask=attention_mask.to(model.device),
            do_sample=False,
            max_new_tokens=max(request.num_output_tokens for request in batch),
            pad_token_id=PAD_TOKEN_ID,
        )
        rows = generated[:, longest:].tolist()
        output_token_ids += [row[: req.num_output_tokens] for row, req in zip(rows, batch, strict=True)]
    return output_token_ids


if __name__ == "__main__":
    main(run)
