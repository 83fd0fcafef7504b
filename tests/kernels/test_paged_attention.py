"""Paged attention, the reference and C++ on each instruction set, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paged_backend.errors import KernelError
from paged_backend.kernels.cpu import _cpu
from paged_backend.kernels.cpu.kernels import CpuKernels
from paged_backend.kernels.reference.kernels import ReferenceKernels
from tests.kernels.paged_case import CACHE_DTYPES, PagedCase, make_case
from tests.kernels.rounding import assert_within

IMPLEMENTATIONS: dict[str, Any] = {"reference": ReferenceKernels()} | {
    name: CpuKernels(2, name) for name in _cpu.available_instruction_sets()
}
implementations = pytest.mark.parametrize("kernels", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS.keys())
cache_dtypes = pytest.mark.parametrize("cache_dtype", CACHE_DTYPES)

# One decode row, a prompt, no row, a chunk of a prompt, one token in all, a long decode, a chunk over many tiles, and
# both where the positions go into a second and a third part.
MIXED_ROWS = [1, 30, 0, 7, 1, 1, 70, 1, 40]
MIXED_CONTEXTS = [40, 30, 5, 95, 1, 333, 170, 1100, 530]


def check(case: PagedCase, kernels: Any) -> None:
    exact, bound = case.exact()
    out = case.run(kernels)
    assert out.dtype == torch.float32
    assert_within(out, exact, bound)


@implementations
@cache_dtypes
@pytest.mark.parametrize("head_size", [1, 3, 7, 8, 20, 40, 64, 80, 128, 256])
def test_head_sizes(kernels: Any, cache_dtype: str, head_size: int) -> None:
    check(make_case(MIXED_ROWS, MIXED_CONTEXTS, head_size=head_size, cache_dtype=cache_dtype), kernels)


@implementations
@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (8, 1), (6, 2), (9, 3), (5, 1), (14, 2), (50, 1)])
def test_head_groups(kernels: Any, heads: tuple[int, int]) -> None:
    case = make_case(MIXED_ROWS, MIXED_CONTEXTS, num_heads=heads[0], num_kv_heads=heads[1], head_size=24)
    check(case, kernels)


@implementations
@cache_dtypes
@pytest.mark.parametrize("block_size", [1, 3, 4, 8, 16, 32, 48, 64, 100, 1024])
def test_block_sizes(kernels: Any, cache_dtype: str, block_size: int) -> None:
    for head_size in (5, 32):
        case = make_case(
            MIXED_ROWS, MIXED_CONTEXTS, head_size=head_size, block_size=block_size, cache_dtype=cache_dtype
        )
        check(case, kernels)


@implementations
@pytest.mark.parametrize("sliding_window", [0, 1, 5, 32, 33, 100, 512, 700, 2000])
@pytest.mark.parametrize("soft_cap", [0.0, 0.5, 30.0])
@pytest.mark.parametrize("cache_dtype", ["float32", "int8"])
def test_windows_and_soft_caps(kernels: Any, sliding_window: int, soft_cap: float, cache_dtype: str) -> None:
    case = make_case(
        MIXED_ROWS, MIXED_CONTEXTS, sliding_window=sliding_window, soft_cap=soft_cap, cache_dtype=cache_dtype
    )
    check(case, kernels)


@implementations
@cache_dtypes
def test_long_contexts_shared_by_threads(kernels: Any, cache_dtype: str) -> None:
    check(make_case([1, 3, 17], [5000, 2049, 3000], head_size=16, cache_dtype=cache_dtype), kernels)


@implementations
def test_large_scores_do_not_overflow(kernels: Any) -> None:
    case = make_case(MIXED_ROWS, MIXED_CONTEXTS)
    case.scale = 40.0
    check(case, kernels)


@implementations
def test_what_is_no_number_stays_so(kernels: Any) -> None:
    case = make_case([1, 3, 1], [600, 40, 70])
    clean = case.run(kernels)
    case.query[2] = torch.nan
    block = int(case.inputs.block_tables[2, 1])
    case.cache.key_numbers()[block, 1, 3, 5] = torch.nan
    case.cache.value_numbers()[int(case.inputs.block_tables[0, 0]), 0, 4, 7] = torch.inf
    out = case.run(kernels).view(5, 4, 32)
    assert out[2].isnan().all()
    assert out[4, 2:].isnan().all()
    assert out[0, :2, 7].eq(torch.inf).all()
    out[2], out[4, 2:], out[0, :2, 7] = 0, 0, 0
    clean = clean.view(5, 4, 32)
    clean[2], clean[4, 2:], clean[0, :2, 7] = 0, 0, 0
    assert torch.equal(out, clean)


@implementations
@cache_dtypes
@pytest.mark.parametrize("block_size", [3, 16, 48])
@pytest.mark.parametrize("sliding_window", [1, 20, 33, 600])
def test_blocks_left_behind_by_the_window_are_not_read(
    kernels: Any, cache_dtype: str, block_size: int, sliding_window: int
) -> None:
    """They may hold what is no number, and their places in the table no block."""
    rows, contexts = [1, 5, 60, 1], [90, 100, 700, 1300]
    case = make_case(rows, contexts, sliding_window=sliding_window, block_size=block_size, cache_dtype=cache_dtype)
    expected = case.run(kernels)
    for table, num_rows, context_len in zip(case.inputs.block_tables, rows, contexts, strict=True):
        num_left = max(0, context_len - num_rows - sliding_window + 1) // block_size
        for blocks in (case.cache.keys, case.cache.values):
            blocks[table[:num_left].long()] = 255
        table[:num_left] = -5
    assert torch.equal(case.run(kernels), expected)


@implementations
def test_rows_with_strides(kernels: Any) -> None:
    case = make_case(MIXED_ROWS, MIXED_CONTEXTS, sliding_window=50)
    expected = case.run(kernels)
    wide = torch.full((case.query.shape[0], case.query.shape[1] + 24), torch.nan)
    wide[:, 8:-16] = case.query
    case.query = wide[:, 8:-16]
    assert torch.equal(case.run(kernels), expected)


@implementations
def test_nothing_to_do(kernels: Any) -> None:
    assert make_case([], []).run(kernels).shape == (0, 128)
    assert make_case([0, 0], [3, 0]).run(kernels).shape == (0, 128)


@st.composite
def cases(draw: st.DrawFn) -> PagedCase:
    rows = draw(st.lists(st.integers(0, 60), max_size=5))
    contexts = [num_rows + draw(st.one_of(st.integers(0, 90), st.integers(400, 1200))) for num_rows in rows]
    num_kv_heads = draw(st.integers(1, 3))
    return make_case(
        rows,
        contexts,
        num_heads=num_kv_heads * draw(st.integers(1, 8)),
        num_kv_heads=num_kv_heads,
        head_size=draw(st.integers(1, 70)),
        block_size=draw(st.integers(1, 40)),
        cache_dtype=draw(st.sampled_from(CACHE_DTYPES)),
        sliding_window=draw(st.one_of(st.just(0), st.integers(1, 700))),
        soft_cap=draw(st.sampled_from((0.0, 1.0, 20.0))),
        seed=draw(st.integers(0, 2**31)),
    )


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_any_shape(case: PagedCase) -> None:
    exact, bound = case.exact()
    for kernels in IMPLEMENTATIONS.values():
        assert_within(case.run(kernels), exact, bound)


@implementations
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("query_start", lambda inputs: inputs.query_start.__setitem__(0, 1)),
        ("query_start", lambda inputs: inputs.query_start.__setitem__(-1, 5)),
        ("query_start", lambda inputs: inputs.query_start.__setitem__(1, 30)),
        ("query_start", lambda inputs: inputs.query_start.__setitem__(1, -3)),
        ("context_lens", lambda inputs: inputs.context_lens.__setitem__(0, 0)),
        ("context_lens", lambda inputs: inputs.context_lens.__setitem__(1, -4)),
        ("block_tables", lambda inputs: inputs.context_lens.__setitem__(0, 2**31 - 1)),
        ("block_tables", lambda inputs: inputs.block_tables.__setitem__((0, 0), -1)),
        ("block_tables", lambda inputs: inputs.block_tables.__setitem__((1, 3), 1000)),
    ],
)
def test_wrong_tables_are_refused(kernels: Any, name: str, change: Any) -> None:
    case = make_case([3, 20], [40, 60])
    change(case.inputs)
    with pytest.raises(KernelError, match=name):
        case.run(kernels)
