"""Paged attention: the reference against C++ on each instruction set. Ends in one JSON object on stdout.

    python benchmarks/kernels/paged_attention.py [--threads 2] [--repeats 15] [--cache-dtype float32]

memory_limit_ms is the time to read the keys and values once, at the bandwidth measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from paged_backend.kernels.cpu import _cpu
from paged_backend.kernels.cpu.paged_attention import PagedAttention
from paged_backend.kernels.reference.paged_attention import paged_attention

NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE, BLOCK_SIZE = 32, 8, 64, 16
SCALE = HEAD_SIZE**-0.5
# Name: (rows, context) of each sequence.
WORKLOADS = {
    "decode, 64 sequences of 512": ([1] * 64, [512] * 64),
    "prefill, 1 sequence of 512": ([512], [512]),
    "mixed, 32 decodes of 512 and a chunk of 256": ([1] * 32 + [256], [512] * 33),
}


def make_arguments(rows: list[int], contexts: list[int], cache_dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Arguments of `Kernels.paged_attention`, with the blocks in random order."""
    counts = [-(-context // BLOCK_SIZE) for context in contexts]
    shape = (sum(counts), NUM_KV_HEADS, BLOCK_SIZE, HEAD_SIZE)
    key_cache, value_cache = torch.randn(shape).to(cache_dtype), torch.randn(shape).to(cache_dtype)
    order = torch.randperm(sum(counts), dtype=torch.int32)
    tables = torch.zeros(len(rows), max(counts), dtype=torch.int32)
    for table, blocks in zip(tables, order.split(counts), strict=True):
        table[: len(blocks)] = blocks
    query_start = torch.tensor([0, *rows], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    query = torch.randn(sum(rows), NUM_HEADS, HEAD_SIZE)
    return query, key_cache, value_cache, tables, query_start, torch.tensor(contexts, dtype=torch.int32)


def median_ms(call: Callable[[], Any], repeats: int) -> float:
    """Median time of a call in milliseconds, after one call to warm up."""
    call()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times)


def main() -> None:
    """Runs all workloads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of torch and of C++")
    parser.add_argument("--repeats", type=int, default=15, help="timed calls, of which the median is shown")
    parser.add_argument("--cache-dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    operations: dict[str, Any] = {
        name: PagedAttention(options.threads, name) for name in _cpu.available_instruction_sets()
    }
    buffer = torch.ones(64 << 20)
    bytes_per_ms = buffer.nbytes / median_ms(buffer.sum, 7)
    results = {}
    for name, (rows, contexts) in WORKLOADS.items():
        arguments = make_arguments(rows, contexts, getattr(torch, options.cache_dtype))
        reference = paged_attention(*arguments, scale=SCALE)
        entry: dict[str, float] = {
            # Keys and values are read at least once for each sequence.
            "memory_limit_ms": 2
            * sum(contexts)
            * NUM_KV_HEADS
            * HEAD_SIZE
            * arguments[1].element_size()
            / bytes_per_ms,
            "reference_ms": median_ms(
                lambda a=arguments: paged_attention(*a, scale=SCALE), max(3, options.repeats // 3)
            ),
        }
        for set_name, operation in operations.items():
            difference = (operation(*arguments, scale=SCALE) - reference).abs().max().item()
            assert difference < 1e-4, f"{set_name} is off by {difference}"
            entry[f"cpp_{set_name}_ms"] = median_ms(
                lambda a=arguments, o=operation: o(*a, scale=SCALE), options.repeats
            )
        entry["speedup"] = entry["reference_ms"] / entry[f"cpp_{next(iter(operations))}_ms"]
        results[name] = {key: round(value, 3) for key, value in entry.items()}
        print(f"{name}: {results[name]}", file=sys.stderr)
    print(
        json.dumps(
            {
                "benchmark": "kernels/paged_attention",
                "heads": [NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE],
                "block_size": BLOCK_SIZE,
                "cache_dtype": options.cache_dtype,
                "threads": options.threads,
                "memory_gb_per_s": round(bytes_per_ms / 1e6, 2),
                "load_average": os.getloadavg()[0],
                "results": results,
            }
        )
    )


if __name__ == "__main__":
    main()
