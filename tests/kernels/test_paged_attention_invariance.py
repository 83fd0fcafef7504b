"""A row of the C++ paged attention has the same bits whatever is computed beside it, on any number of threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from paged_backend.kernels.cpu import _cpu
from paged_backend.kernels.cpu.kernels import CpuKernels
from tests.kernels.paged_case import make_case

INSTRUCTION_SETS = _cpu.available_instruction_sets()
sets = pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
variants = pytest.mark.parametrize(
    "variant",
    [
        {},
        {"sliding_window": 37},
        {"soft_cap": 5.0, "head_size": 20},
        {"num_heads": 3, "num_kv_heads": 3, "cache_dtype": "bfloat16"},
        {"num_heads": 7, "num_kv_heads": 1, "sliding_window": 600, "cache_dtype": "float16"},
        {"num_heads": 6, "num_kv_heads": 2, "cache_dtype": "int8", "head_size": 64},
        {"num_heads": 8, "num_kv_heads": 1, "cache_dtype": "int8", "soft_cap": 3.0, "head_size": 5},
    ],
    ids=["plain", "window", "cap", "bfloat16", "float16", "int8", "int8 cap"],
)
# Also rows whose positions begin a part, and sequences of several parts.
ROWS = [1, 64, 5, 130, 1, 17, 1, 25]
CONTEXTS = [100, 64, 205, 130, 31, 50, 1537, 1040]


@sets
@variants
def test_alone_or_among_others(instruction_set: str, variant: dict[str, Any]) -> None:
    case = make_case(ROWS, CONTEXTS, **variant)
    kernels = CpuKernels(2, instruction_set)
    together = case.run(kernels)
    for index, num_rows in enumerate(ROWS):
        assert torch.equal(case.part(index, 0, num_rows).run(kernels), case.rows_of(together, index))


@sets
@variants
@pytest.mark.parametrize("chunk", [1, 2, 13, 48, 100])
def test_whole_or_in_chunks(instruction_set: str, variant: dict[str, Any], chunk: int) -> None:
    case = make_case(ROWS, CONTEXTS, **variant)
    kernels = CpuKernels(2, instruction_set)
    together = case.run(kernels)
    for index in (1, 3, 7):
        parts = [
            case.part(index, first, min(chunk, ROWS[index] - first)).run(kernels)
            for first in range(0, ROWS[index], chunk)
        ]
        assert torch.equal(torch.cat(parts), case.rows_of(together, index))


@sets
@variants
@pytest.mark.parametrize("rows", [ROWS, [1, 0, 0, 0, 0, 0, 1, 25]], ids=["many", "few"])
def test_any_number_of_threads(instruction_set: str, variant: dict[str, Any], rows: list[int]) -> None:
    case = make_case(rows, CONTEXTS, **variant)
    expected = case.run(CpuKernels(1, instruction_set))
    for num_threads in (2, 3, 8):
        kernels = CpuKernels(num_threads, instruction_set)
        for _ in range(5):
            assert torch.equal(case.run(kernels), expected)


@sets
@variants
def test_any_block_size(instruction_set: str, variant: dict[str, Any]) -> None:
    kernels = CpuKernels(2, instruction_set)
    expected = make_case(ROWS, CONTEXTS, **variant).run(kernels)
    for block_size in (1, 8, 20, 64):
        assert torch.equal(make_case(ROWS, CONTEXTS, block_size=block_size, **variant).run(kernels), expected)


def test_calls_from_several_threads_take_turns() -> None:
    kernels = CpuKernels(2)
    cases = [make_case(ROWS, CONTEXTS, head_size=head_size) for head_size in (8, 16, 64, 128)]
    expected = [case.run(kernels) for case in cases]
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda i: cases[i % 4].run(kernels), range(200)))
    assert all(torch.equal(result, expected[i % 4]) for i, result in enumerate(results))
