"""Paged attention in C++ against what the machine can do. Ends in one JSON object on stdout.

    python -m benchmarks.kernels.paged_attention [--threads 2] [--seconds 0.3] [--sets avx512,avx2] [--only decode]
        [--quick] [--output FILE]

limit_ms is the larger of two times, at the rates measured right before and after (benchmarks/limits.py): of reading
the keys and values that the rows see, once for each sequence, from memory (as many layers are computed in turn as no
cache holds), and of the float32 products. of_limit is limit_ms / ms.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from benchmarks.limits import LimitMeter
from benchmarks.machine import num_cores
from benchmarks.report import finish, make_parser, say
from paged_backend.kernels.cache_layout import block_bytes
from paged_backend.kernels.cpu import _cpu

BLOCK_SIZE = 16
# Query heads, key/value heads, head size.
SHAPES = {"9/3 x 64": (9, 3, 64), "16/8 x 128": (16, 8, 128)}
# Rows and context of each sequence.
WORKLOADS = {
    "decode 1 x 8192": [(1, 8192)],
    "decode 8 x 1024": [(1, 1024)] * 8,
    "decode 48 x 256": [(1, 256)] * 48,
    "decode 256 x 512": [(1, 512)] * 256,
    "prefill 512": [(512, 512)],
    "prefill 2048": [(2048, 2048)],
    "mixed, 32 decode x 512 and a chunk of 256 at 512": [(1, 512)] * 32 + [(256, 512)],
}
DTYPES = {"float32": 4, "bfloat16": 2, "int8": 1}
COLD_BYTES = 96 << 20
"""All layers together: more than a cache holds."""


def make_layers(count: int, num_blocks: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """Caches of random bits, of which none is infinite or no number in any dtype."""
    storage = torch.randint(64, (count, 2, num_blocks, size), dtype=torch.uint8)
    return [(layer[0], layer[1]) for layer in storage]


def measure(
    runtime: _cpu.Runtime,
    meter: LimitMeter,
    shape: tuple[int, int, int],
    sequences: list[tuple[int, int]],
    dtype: str,
    seconds: float,
) -> dict[str, float]:
    """One workload's figures, in milliseconds, GB/s and GFLOP/s."""
    num_heads, num_kv_heads, head_size = shape
    rows, contexts = [list(numbers) for numbers in zip(*sequences, strict=True)]
    counts = [-(-context // BLOCK_SIZE) for context in contexts]
    tables = torch.zeros(len(rows), max(counts), dtype=torch.int32)
    order = torch.randperm(sum(counts), dtype=torch.int32)
    for table, blocks in zip(tables, order.split(counts), strict=True):
        table[: len(blocks)] = blocks
    scale_bytes = 4 if dtype == "int8" else 0
    num_bytes = 2 * sum(contexts) * num_kv_heads * (head_size * DTYPES[dtype] + scale_bytes)
    size = block_bytes(dtype, num_kv_heads, BLOCK_SIZE, head_size)
    num_layers = max(1, -(-COLD_BYTES // (2 * sum(counts) * size)))
    query = torch.randn(sum(rows), num_heads * head_size)
    layers = make_layers(num_layers, sum(counts), size)
    query_start = torch.tensor([0, *itertools.accumulate(rows)], dtype=torch.int32)
    with meter.around() as limits:
        time_s = _cpu.time_paged_attention(
            runtime,
            query,
            layers,
            dtype,
            num_kv_heads,
            BLOCK_SIZE,
            head_size,
            tables,
            query_start,
            torch.tensor(contexts, dtype=torch.int32),
            torch.empty_like(query),
            head_size**-0.5,
            seconds,
        )
    # Row r of a sequence sees context - num_rows + r + 1 keys.
    seen = sum(num_rows * context - num_rows * (num_rows - 1) // 2 for num_rows, context in sequences)
    num_products = 4 * seen * num_heads * head_size
    limit_s = max(num_bytes / limits["memory_bytes"], num_products / limits["float_flops"])
    return {
        "ms": round(time_s * 1e3, 4),
        "limit_ms": round(limit_s * 1e3, 4),
        "of_limit": round(limit_s / time_s, 3),
        "gb_per_s": round(num_bytes / time_s / 1e9, 1),
        "gflop_per_s": round(num_products / time_s / 1e9, 1),
    }


def main() -> None:
    """Runs all workloads."""
    parser = make_parser(__doc__)
    parser.add_argument("--threads", type=int, default=num_cores())
    parser.add_argument("--seconds", type=float, default=0.3, help="of runs for each figure")
    parser.add_argument("--sets", default=_cpu.available_instruction_sets()[0], help="instruction sets, by commas")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="of the cache, by commas")
    parser.add_argument("--only", default="", help="part of a workload's name")
    options = parser.parse_args()
    chosen = [name for name in WORKLOADS if options.only in name]
    if options.quick:
        chosen, options.seconds = chosen[:3], 0.01
    torch.manual_seed(0)

    results: dict[str, Any] = {}
    limits: dict[str, Any] = {}
    for name in options.sets.split(","):
        runtime = _cpu.Runtime(options.threads, name)
        meter = LimitMeter(runtime, options.seconds / 10)
        for shape_name, shape in SHAPES.items():
            for workload in chosen:
                for dtype in options.dtypes.split(","):
                    entry = measure(runtime, meter, shape, WORKLOADS[workload], dtype, options.seconds)
                    key = f"{name}, {shape_name}, {workload}, {dtype}"
                    results[key] = entry
                    say(f"{key}: {entry}")
        limits[name] = meter.report()
    report = {
        "benchmark": "kernels/paged_attention",
        "block_size": BLOCK_SIZE,
        "threads": options.threads,
        "limits_g_per_s": limits,
        "results": results,
    }
    finish(report, options.output)


if __name__ == "__main__":
    main()
