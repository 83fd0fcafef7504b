"""A row of the C++ paged attention has the same bits whatever is computed beside it, on any number of threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.cpu import _cpu
from paged_backend.kernels.cpu.paged_attention import PagedAttention
from tests.kernels.paged_case import PagedCase, make_case

INSTRUCTION_SETS = _cpu.available_instruction_sets()
sets = pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
variants = pytest.mark.parametrize(
    "variant",
    [
        {},
        {"sliding_window": 37},
        {"soft_cap": 5.0, "head_size": 20},
        {"num_heads": 3, "num_kv_heads": 3, "cache_dtype": torch.bfloat16},
        {"num_heads": 7, "num_kv_heads": 1, "sliding_window": 70, "cache_dtype": torch.float16},
    ],
    ids=["plain", "window", "cap", "bfloat16", "float16"],
)
ROWS = [1, 64, 5, 130, 1, 17]
CONTEXTS = [100, 64, 205, 130, 31, 50]


def part(case: PagedCase, index: int, first_row: int, num_rows: int, context_len: int) -> PagedCase:
    """Some rows of one sequence, as a step would compute them that stops at context_len tokens."""
    begin = int(case.query_start[index]) + first_row
    return PagedCase(
        query=case.query[begin : begin + num_rows],
        key_cache=case.key_cache,
        value_cache=case.value_cache,
        block_tables=case.block_tables[index : index + 1].contiguous(),
        query_start=torch.tensor([0, num_rows], dtype=torch.int32),
        context_lens=torch.tensor([context_len], dtype=torch.int32),
        scale=case.scale,
        sliding_window=case.sliding_window,
        soft_cap=case.soft_cap,
        keys=[],
        values=[],
    )


def rows_of(case: PagedCase, out: Tensor, index: int) -> Tensor:
    return out[case.query_start[index] : case.query_start[index + 1]]


@sets
@variants
def test_alone_or_among_others(instruction_set: str, variant: dict[str, object]) -> None:
    case = make_case(ROWS, CONTEXTS, **variant)  # type: ignore[arg-type]
    operation = PagedAttention(2, instruction_set)
    together = case.run(operation)
    for index, (num_rows, context_len) in enumerate(zip(ROWS, CONTEXTS, strict=True)):
        alone = part(case, index, 0, num_rows, context_len).run(operation)
        assert torch.equal(alone, rows_of(case, together, index))


@sets
@variants
@pytest.mark.parametrize("chunk", [1, 2, 13, 48, 100])
def test_whole_or_in_chunks(instruction_set: str, variant: dict[str, object], chunk: int) -> None:
    case = make_case(ROWS, CONTEXTS, **variant)  # type: ignore[arg-type]
    operation = PagedAttention(2, instruction_set)
    for index in (1, 3):
        whole = rows_of(case, case.run(operation), index)
        first_position = CONTEXTS[index] - ROWS[index]
        parts = []
        for first in range(0, ROWS[index], chunk):
            num_rows = min(chunk, ROWS[index] - first)
            parts.append(part(case, index, first, num_rows, first_position + first + num_rows).run(operation))
        assert torch.equal(torch.cat(parts), whole)


@sets
@variants
def test_any_number_of_threads(instruction_set: str, variant: dict[str, object]) -> None:
    case = make_case(ROWS, CONTEXTS, **variant)  # type: ignore[arg-type]
    expected = case.run(PagedAttention(1, instruction_set))
    for num_threads in (2, 3, 8):
        operation = PagedAttention(num_threads, instruction_set)
        assert operation.num_threads == num_threads
        for _ in range(5):
            assert torch.equal(case.run(operation), expected)


@sets
@variants
def test_any_block_size(instruction_set: str, variant: dict[str, object]) -> None:
    operation = PagedAttention(2, instruction_set)
    expected = make_case(ROWS, CONTEXTS, **variant).run(operation)  # type: ignore[arg-type]
    for block_size in (1, 8, 20, 64):
        case = make_case(ROWS, CONTEXTS, block_size=block_size, **variant)  # type: ignore[arg-type]
        assert torch.equal(case.run(operation), expected)


def test_calls_from_several_threads_take_turns() -> None:
    operation = PagedAttention(2)
    cases = [make_case(ROWS, CONTEXTS, head_size=head_size) for head_size in (8, 16, 64, 128)]
    expected = [case.run(operation) for case in cases]
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda i: cases[i % 4].run(operation), range(200)))
    assert all(torch.equal(result, expected[i % 4]) for i, result in enumerate(results))


def test_an_instruction_set_that_is_not_there_is_refused() -> None:
    assert PagedAttention(1).instruction_set == INSTRUCTION_SETS[0]
    assert INSTRUCTION_SETS[-1] == "portable"
    with pytest.raises(KernelError, match="instruction_set"):
        PagedAttention(1, "abacus")
