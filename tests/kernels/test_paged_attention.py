"""Paged attention, the reference and C++ on each instruction set, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paged_backend.errors import KernelError
from paged_backend.kernels.cpu import _cpu
from paged_backend.kernels.cpu.paged_attention import PagedAttention
from paged_backend.kernels.reference.paged_attention import paged_attention
from tests.kernels.paged_case import PagedCase, make_case
from tests.kernels.rounding import FLOAT_DTYPES, assert_within

OPERATIONS: dict[str, Any] = {"reference": paged_attention} | {
    name: PagedAttention(2, name) for name in _cpu.available_instruction_sets()
}
operations = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())

# One decode row, a prompt, no row, a chunk of a prompt, one token in all, a long decode, a chunk over many
# tiles.
MIXED_ROWS = [1, 30, 0, 7, 1, 1, 70]
MIXED_CONTEXTS = [40, 30, 5, 95, 1, 333, 170]


def check(case: PagedCase, operation: Any) -> None:
    exact, bound = case.exact()
    out = case.run(operation)
    assert out.dtype == case.query.dtype and out.is_contiguous()
    assert_within(out, exact, bound)


@operations
@pytest.mark.parametrize("head_size", [1, 7, 8, 40, 64, 80, 128, 256])
def test_head_sizes(operation: Any, head_size: int) -> None:
    check(make_case(MIXED_ROWS, MIXED_CONTEXTS, head_size=head_size), operation)


@operations
@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (8, 1), (6, 2), (9, 3), (14, 2), (50, 1)])
def test_head_groups(operation: Any, heads: tuple[int, int]) -> None:
    case = make_case(MIXED_ROWS, MIXED_CONTEXTS, num_heads=heads[0], num_kv_heads=heads[1], head_size=24)
    check(case, operation)


@operations
@pytest.mark.parametrize("query_dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("cache_dtype", FLOAT_DTYPES, ids=str)
def test_dtypes(operation: Any, query_dtype: torch.dtype, cache_dtype: torch.dtype) -> None:
    for head_size in (20, 64):
        case = make_case(
            MIXED_ROWS, MIXED_CONTEXTS, head_size=head_size, query_dtype=query_dtype, cache_dtype=cache_dtype
        )
        check(case, operation)


@operations
@pytest.mark.parametrize("block_size", [1, 3, 8, 16, 32, 100])
def test_block_sizes(operation: Any, block_size: int) -> None:
    check(make_case(MIXED_ROWS, MIXED_CONTEXTS, block_size=block_size), operation)


@operations
@pytest.mark.parametrize("sliding_window", [0, 1, 5, 32, 33, 100, 1000])
@pytest.mark.parametrize("soft_cap", [0.0, 0.5, 30.0])
def test_windows_and_soft_caps(operation: Any, sliding_window: int, soft_cap: float) -> None:
    case = make_case(MIXED_ROWS, MIXED_CONTEXTS, sliding_window=sliding_window, soft_cap=soft_cap)
    check(case, operation)


@operations
def test_large_scores_do_not_overflow(operation: Any) -> None:
    case = make_case(MIXED_ROWS, MIXED_CONTEXTS)
    case.scale = 40.0
    check(case, operation)


@operations
def test_blocks_left_behind_by_the_window_are_not_read(operation: Any) -> None:
    case = make_case([1, 5], [90, 100], sliding_window=20)
    expected = case.run(operation)
    case.block_tables[:, :4] = -5
    assert torch.equal(case.run(operation), expected)


@operations
def test_caches_with_strides_between_blocks(operation: Any) -> None:
    case = make_case(MIXED_ROWS, MIXED_CONTEXTS, sliding_window=50)
    expected = case.run(operation)
    both = torch.stack((case.key_cache, case.value_cache), dim=1)
    case.key_cache, case.value_cache = both[:, 0], both[:, 1]
    wide = torch.randn(case.query.shape[0], 9, case.query.shape[2])
    wide[:, 2:6] = case.query
    case.query = wide[:, 2:6]
    assert torch.equal(case.run(operation), expected)


@operations
def test_nothing_to_do(operation: Any) -> None:
    assert make_case([], []).run(operation).shape == (0, 4, 32)
    assert make_case([0, 0], [3, 0]).run(operation).shape == (0, 4, 32)


@st.composite
def cases(draw: st.DrawFn) -> PagedCase:
    rows = draw(st.lists(st.integers(0, 60), max_size=5))
    contexts = [num_rows + draw(st.integers(0, 90)) for num_rows in rows]
    num_kv_heads = draw(st.integers(1, 3))
    return make_case(
        rows,
        contexts,
        num_heads=num_kv_heads * draw(st.integers(1, 5)),
        num_kv_heads=num_kv_heads,
        head_size=draw(st.integers(1, 70)),
        block_size=draw(st.integers(1, 40)),
        query_dtype=draw(st.sampled_from(FLOAT_DTYPES)),
        cache_dtype=draw(st.sampled_from(FLOAT_DTYPES)),
        sliding_window=draw(st.one_of(st.just(0), st.integers(1, 160))),
        soft_cap=draw(st.sampled_from((0.0, 1.0, 20.0))),
        seed=draw(st.integers(0, 2**31)),
    )


@settings(max_examples=80, deadline=None)
@given(case=cases())
def test_any_shape(case: PagedCase) -> None:
    if case.query.shape[0] == 0:
        assert all(case.run(operation).numel() == 0 for operation in OPERATIONS.values())
        return
    exact, bound = case.exact()
    for operation in OPERATIONS.values():
        assert_within(case.run(operation), exact, bound)


@operations
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("query_start", lambda case: case.query_start.__setitem__(0, 1)),
        ("query_start", lambda case: case.query_start.__setitem__(-1, 5)),
        ("query_start", lambda case: case.query_start.__setitem__(1, 30)),
        ("query_start", lambda case: case.query_start.__setitem__(1, -3)),
        ("context_lens", lambda case: case.context_lens.__setitem__(0, 0)),
        ("context_lens", lambda case: case.context_lens.__setitem__(1, -4)),
        ("block_tables", lambda case: case.context_lens.__setitem__(0, 2**31 - 1)),
        ("block_tables", lambda case: case.block_tables.__setitem__((0, 0), -1)),
        ("block_tables", lambda case: case.block_tables.__setitem__((1, 3), 1000)),
    ],
)
def test_wrong_tables_are_refused(operation: Any, name: str, change: Any) -> None:
    case = make_case([3, 20], [40, 60])
    change(case)
    with pytest.raises(KernelError, match=name):
        case.run(operation)
