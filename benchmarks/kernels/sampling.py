"""Sampling: the reference against C++ on each instruction set. Ends in one JSON object on stdout.

    python benchmarks/kernels/sampling.py [--threads 2] [--repeats 30]

memory_limit_ms is the time to read the logits once, at the bandwidth measured in the same run. Times are the least of
many, so that what else runs on the machine counts little. Logits are normal with a deviation of 1 (flat: most of the
vocabulary is in a nucleus of 0.95) or 3 (peaked, nearer to what models give).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from paged_backend.kernels.cpu import _cpu
from paged_backend.kernels.cpu.sampling import sample as sample_cpu
from paged_backend.kernels.reference.sampling import sample as sample_reference
from paged_backend.kernels.sampling_batch import LogitChanges, SampledBatch, SamplingBatch
from paged_backend.sampling.sampler import sample as sample_tasks
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import SamplingTask

SHAPES = ((48, 49152), (64, 151936))
SPREADS = {"flat": 1.0, "peaked": 3.0}
WORKLOADS: dict[str, dict[str, Any]] = {
    "greedy": {"temperatures": 0.0},
    "temperature": {},
    "top_k 50": {"top_k": 50},
    "top_p 0.95": {"top_p": 0.95},
    "top_k 50, top_p 0.9": {"top_k": 50, "top_p": 0.9},
    "min_p 0.05": {"min_p": 0.05},
    "greedy, 5 logprobs": {"temperatures": 0.0, "num_logprobs": 5},
    "greedy, penalties": {
        "temperatures": 0.0,
        "changes": LogitChanges(
            repetition_penalty=1.1,
            frequency_penalty=0.1,
            prompt_token_ids=list(range(500)),
            output_token_ids=list(range(300)),
        ),
    },
}


def make_batch(num_rows: int, workload: dict[str, Any]) -> SamplingBatch:
    """The same parameters for each row."""
    columns = {"temperatures": 0.8, "positions": 5, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | workload
    changes = columns.pop("changes", None)
    batch = SamplingBatch(
        seeds=[(row,) for row in range(num_rows)], **{name: [value] * num_rows for name, value in columns.items()}
    )
    if changes is not None:
        batch.changes = dict.fromkeys(range(num_rows), changes)
    return batch


def least_ms(call: Callable[[], Any], repeats: int) -> float:
    """Least time of a call in milliseconds, after one call to warm up."""
    call()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1e3)
    return min(times)


class _OnlyColumns:
    """Kernels that draw nothing: what is left is the work around them."""

    def sample(self, logits: torch.Tensor, batch: SamplingBatch) -> SampledBatch:
        return SampledBatch([0] * len(batch.seeds))


def glue_us(num_rows: int, repeats: int) -> float:
    """Microseconds from greedy tasks to columns, and from tokens to samples."""
    params = [SamplingParams(temperature=0.0) for _ in range(num_rows)]
    tasks = [SamplingTask(one, (row,), (), ()) for row, one in enumerate(params)]
    kernels: Any = _OnlyColumns()
    return 1e3 * least_ms(lambda: sample_tasks(kernels, torch.empty(0), tasks), repeats)


def main() -> None:
    """Runs all workloads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of torch and of C++")
    parser.add_argument("--repeats", type=int, default=30, help="timed calls, of which the least is shown")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    runtimes = {name: _cpu.Runtime(options.threads, name) for name in _cpu.available_instruction_sets()}
    buffer = torch.ones(64 << 20)
    bytes_per_ms = buffer.nbytes / least_ms(buffer.sum, 7)
    results = []
    for num_rows, vocab_size in SHAPES:
        for spread, scale in SPREADS.items():
            logits = torch.randn(num_rows, vocab_size) * scale
            for name, workload in WORKLOADS.items():
                batch = make_batch(num_rows, workload)
                expected = sample_reference(logits, batch)
                entry = {"memory_limit_ms": logits.nbytes / bytes_per_ms}
                entry["reference_ms"] = least_ms(lambda x=logits, b=batch: sample_reference(x, b), 2)
                for set_name, runtime in runtimes.items():
                    drawn = sample_cpu(runtime, logits, batch).token_ids
                    assert drawn == expected.token_ids, f"{set_name} draws other tokens for {name}"
                    entry[f"cpp_{set_name}_ms"] = least_ms(
                        lambda r=runtime, x=logits, b=batch: sample_cpu(r, x, b), options.repeats
                    )
                rounded = {key: round(value, 3) for key, value in entry.items()}
                results.append({"rows": num_rows, "vocab_size": vocab_size, "logits": spread, "work": name} | rounded)
                print(results[-1], file=sys.stderr)
    print(
        json.dumps(
            {
                "benchmark": "kernels/sampling",
                "threads": options.threads,
                "memory_gb_per_s": round(bytes_per_ms / 1e6, 2),
                "load_average": os.getloadavg()[0],
                "glue_us_256_greedy_rows": round(glue_us(256, 300), 1),
                "results": results,
            }
        )
    )


if __name__ == "__main__":
    main()
