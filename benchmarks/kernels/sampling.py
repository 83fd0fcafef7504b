"""Sampling: the reference against C++ on each instruction set. Ends in one JSON object on stdout.

    python -m benchmarks.kernels.sampling [--threads 2] [--repeats 30] [--quick] [--output FILE]

limit_ms is the time to read the logits once from memory, at the bandwidth measured right before and after
(benchmarks/limits.py); copies of them take turns, so that no cache holds them. of_limit is that over the best set's
time. Times are the least of many, so that what else runs on the machine counts little. Logits are normal with a
deviation of 1 (flat: most of the vocabulary is in a nucleus of 0.95) or 3 (peaked, nearer to what models give).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.limits import LimitMeter
from benchmarks.machine import num_cores
from benchmarks.report import finish, make_parser, say
from paged_backend.kernels.cpu import _cpu
from paged_backend.kernels.cpu.sampling import sample as sample_cpu
from paged_backend.kernels.reference.sampling import sample as sample_reference
from paged_backend.kernels.sampling_batch import LogitChanges, SampledBatch, SamplingBatch
from paged_backend.sampling.sampler import sample as sample_tasks
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import SamplingTask

SHAPES = ((48, 49152), (64, 151936))
COLD_BYTES = 96 << 20
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
    columns: dict[str, Any] = {"temperatures": 0.8, "positions": 5, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | workload
    changes = columns.pop("changes", None)
    fields: dict[str, Any] = {name: [value] * num_rows for name, value in columns.items()}
    if changes is not None:
        fields["changes"] = dict.fromkeys(range(num_rows), changes)
    return SamplingBatch(seeds=[(row,) for row in range(num_rows)], **fields)


def least_ms(call: Callable[[], Any], repeats: int) -> float:
    """Least time of a call in milliseconds, after one call to warm up."""
    call()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1e3)
    return min(times)


def measure(
    runtimes: dict[str, _cpu.Runtime],
    meter: LimitMeter,
    copies: list[torch.Tensor],
    batch: SamplingBatch,
    name: str,
    repeats: int,
) -> dict[str, float]:
    """One line of the table, in milliseconds."""
    expected = sample_reference(copies[0], batch)
    entry = {"reference_ms": least_ms(lambda: sample_reference(copies[0], batch), 2)}
    times = []
    with meter.around() as limits:
        for set_name, runtime in runtimes.items():
            drawn = sample_cpu(runtime, copies[0], batch).token_ids
            assert drawn == expected.token_ids, f"{set_name} draws other tokens for {name}"
            times.append(least_ms(partial(_sample_next, runtime, itertools.cycle(copies), batch), repeats))
            entry[f"cpp_{set_name}_ms"] = times[-1]
    limit_ms = copies[0].nbytes / limits["memory_bytes"] * 1e3
    entry |= {"limit_ms": limit_ms, "of_limit": limit_ms / min(times)}
    return {key: round(value, 3) for key, value in entry.items()}


def _sample_next(runtime: _cpu.Runtime, logits: Iterator[torch.Tensor], batch: SamplingBatch) -> SampledBatch:
    return sample_cpu(runtime, next(logits), batch)


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
    parser = make_parser(__doc__)
    parser.add_argument("--threads", type=int, default=num_cores(), help="threads of torch and of C++")
    parser.add_argument("--repeats", type=int, default=30, help="timed calls, of which the least is shown")
    options = parser.parse_args()
    shapes = SHAPES[:1] if options.quick else SHAPES
    if options.quick:
        options.repeats = 3
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    runtimes = {name: _cpu.Runtime(options.threads, name) for name in _cpu.available_instruction_sets()}
    meter = LimitMeter(next(iter(runtimes.values())), 0.01)
    results = []
    for num_rows, vocab_size in shapes:
        for spread, scale in SPREADS.items():
            copies = [torch.randn(num_rows, vocab_size) * scale]
            copies += [copies[0].clone() for _ in range(COLD_BYTES // copies[0].nbytes)]
            for name, workload in WORKLOADS.items():
                entry = measure(runtimes, meter, copies, make_batch(num_rows, workload), name, options.repeats)
                results.append({"rows": num_rows, "vocab_size": vocab_size, "logits": spread, "work": name} | entry)
                say(str(results[-1]))
    report = {
        "benchmark": "kernels/sampling",
        "threads": options.threads,
        "limits_g_per_s": meter.report(),
        "glue_us_256_greedy_rows": round(glue_us(256, 10 * options.repeats), 1),
        "results": results,
    }
    finish(report, options.output)


if __name__ == "__main__":
    main()
