"""Attention over the paged cache in Triton, decode and prefill, against float64; and whose bits depend on what."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.triton import paged_attention as launches
from paged_backend.kernels.triton.attention_config import attention_config
from paged_backend.kernels.triton.kernels import TritonKernels
from paged_backend.kernels.triton.paged_attention import paged_attention
from tests.kernels.paged_case import PagedCase, make_case
from tests.kernels.rounding import assert_within, unit
from tests.kernels.triton.placed import placed_cache, placed_inputs

# One decode row, a prompt, no row, a chunk of a prompt, one token in all, and a decode of several splits.
ROWS, CONTEXTS = [1, 20, 0, 7, 1, 1], [40, 20, 5, 95, 1, 333]


@pytest.fixture(autouse=True)
def _short_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a short context has many, and some of the longer ones."""
    monkeypatch.setattr(launches, "SPLIT_UNIT", 64)


class Attention:
    """The kernels' attention alone."""

    def __init__(self, device: torch.device, *, batch_invariant: bool = False) -> None:
        self.device = device
        self.batch_invariant = batch_invariant

    def paged_attention(self, query: Tensor, cache: Any, inputs: Any, **options: Any) -> Tensor:
        return paged_attention(
            query.to(self.device),
            placed_cache(cache, self.device),
            placed_inputs(inputs, self.device),
            options["scale"],
            options["sliding_window"],
            options["soft_cap"],
            batch_invariant=self.batch_invariant,
        ).cpu()


def new_case(dtype: torch.dtype, rows: list[int] = ROWS, contexts: list[int] = CONTEXTS, **options: Any) -> PagedCase:
    """With queries of a dtype, and a cache of the same if none is asked for."""
    defaults = {"token_major_keys": True, "cache_dtype": str(dtype).removeprefix("torch.")}
    case = make_case(rows, contexts, **{**defaults, **options})
    return dataclasses.replace(case, query=case.query.to(dtype))


def check(case: PagedCase, kernels: Any) -> None:
    """Weights and values are rounded to the query's dtype before they are multiplied, and the result once more."""
    exact, bound = case.exact()
    magnitude, _ = dataclasses.replace(case, values=[values.abs() for values in case.values]).exact()
    assert_within(case.run(kernels), exact, bound + 2 * unit(case.query.dtype) * (magnitude + bound))


@pytest.mark.parametrize(
    ("dtype", "batch_invariant", "options"),
    [
        (torch.float16, False, {"head_size": 64, "num_heads": 6}),
        (torch.float16, True, {"head_size": 64, "num_heads": 6, "sliding_window": 200}),
        (torch.float16, False, {"head_size": 128, "block_size": 32, "num_heads": 14, "cache_dtype": "int8"}),
        (torch.float16, True, {"head_size": 96, "block_size": 128, "cache_dtype": "fp8_e4m3", "sliding_window": 70}),
        (torch.float16, False, {"head_size": 256, "block_size": 64, "num_heads": 2, "soft_cap": 3.0}),
        (torch.float32, True, {"head_size": 80, "sliding_window": 50, "soft_cap": 20.0}),
        (torch.float32, False, {"head_size": 128, "block_size": 48, "num_kv_heads": 1, "num_heads": 20}),
        (torch.float32, True, {"head_size": 20, "block_size": 3, "cache_dtype": "int8", "num_kv_heads": 1}),
        (torch.float32, False, {"head_size": 64, "cache_dtype": "fp8_e4m3", "sliding_window": 1}),
        (torch.float32, False, {"head_size": 64, "cache_dtype": "float16", "sliding_window": 300, "num_heads": 2}),
    ],
    ids=str,
)
def test_against_float64(
    device: torch.device, dtype: torch.dtype, batch_invariant: bool, options: dict[str, Any]
) -> None:
    check(new_case(dtype, **options), Attention(device, batch_invariant=batch_invariant))


def test_splits_of_every_length(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """A context that goes into the third size of splits, and a prompt that does."""
    monkeypatch.setattr(launches, "SPLIT_UNIT", 16)
    case = new_case(torch.float32, [1, 5], [900, 333], num_heads=2, num_kv_heads=1)
    check(case, Attention(device, batch_invariant=True))


@pytest.mark.parametrize("sliding_window", [0, 37])
def test_a_row_does_not_depend_on_its_batch(device: torch.device, sliding_window: int) -> None:
    """Each sequence alone, where tables are narrow and programs many, as among the others."""
    case = new_case(torch.float16, sliding_window=sliding_window, num_kv_heads=1)
    attention = Attention(device)
    together = case.run(attention)
    for index, num_rows in enumerate(ROWS):
        if num_rows:
            part = case.part(index, 0, num_rows)
            width = -(-CONTEXTS[index] // 16)
            part.inputs = dataclasses.replace(
                part.inputs, block_tables=part.inputs.block_tables[:, :width].contiguous()
            )
            assert torch.equal(part.run(attention), case.rows_of(together, index))


@pytest.mark.parametrize(
    ("dtype", "unit", "options"),
    [
        (torch.float16, 64, {"head_size": 64, "num_heads": 6}),
        (torch.float32, 16, {"head_size": 32, "sliding_window": 30, "num_kv_heads": 1}),
        (torch.float16, 64, {"head_size": 32, "cache_dtype": "int8", "soft_cap": 5.0, "num_kv_heads": 1}),
    ],
    ids=str,
)
def test_decodes_chunks_and_whole_prompts_are_equal_where_batch_invariant(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, unit: int, options: dict[str, Any]
) -> None:
    """A position's bits, however the steps that compute its sequence are cut."""
    monkeypatch.setattr(launches, "SPLIT_UNIT", unit)
    length = 2 * unit + 12
    case = new_case(dtype, [length], [length], **options)
    attention = Attention(device, batch_invariant=True)
    whole = case.run(attention)
    for first, count in [(0, 1), (unit - 1, 1), (unit, 2), (2 * unit, 1), (length - 1, 1), (unit // 2, unit)]:
        assert torch.equal(case.part(0, first, count).run(attention), whole[first : first + count]), (first, count)


def test_chunks_are_equal_to_whole_prompts(device: torch.device) -> None:
    case = new_case(torch.float16, [150], [150], num_kv_heads=1)
    attention = Attention(device)
    whole = case.run(attention)
    for first, count in [(40, 61), (148, 2)]:
        assert torch.equal(case.part(0, first, count).run(attention), whole[first : first + count]), (first, count)


@pytest.mark.parametrize("sliding_window", [1, 40])
def test_what_windows_left_behind_is_not_read(device: torch.device, sliding_window: int) -> None:
    """Blocks before every row's window may be no number, and their places in the table no block."""
    rows, contexts = [1, 5], [190, 100]
    case = new_case(torch.float32, rows, contexts, sliding_window=sliding_window)
    expected = case.run(Attention(device))
    for table, num_rows, context_len in zip(case.inputs.block_tables, rows, contexts, strict=True):
        num_left = max(0, context_len - num_rows - sliding_window + 1) // case.cache.block_size
        for blocks in (case.cache.keys, case.cache.values):
            blocks[table[:num_left].long()] = 255
        table[:num_left] = -5
    assert torch.equal(case.run(Attention(device)), expected)


def test_rows_with_strides_and_a_bound_of_rows(device: torch.device) -> None:
    case = new_case(torch.float16, [1, 1], [70, 9])
    expected = case.run(Attention(device))
    for extra in (24, 1):
        wide = torch.full((2, case.query.shape[1] + extra), torch.nan, dtype=torch.float16)
        wide[:, :-extra] = case.query
        case.query = wide[:, :-extra]
        case.inputs = dataclasses.replace(case.inputs, max_query_len=1)
        assert torch.equal(case.run(Attention(device)), expected)


def test_nothing_to_do(device: torch.device) -> None:
    for case in (new_case(torch.float32, [], []), new_case(torch.float32, [0, 0], [3, 0])):
        assert case.run(TritonKernels(device, torch.float32)).shape == (0, 128)


def test_groups_of_layers(device: torch.device) -> None:
    """A layer reads the tables of its own group."""
    case = new_case(torch.float32, [1, 3], [40, 30])
    expected = case.run(Attention(device))
    tables = torch.cat((torch.full_like(case.inputs.block_tables, -7), case.inputs.block_tables))
    case.inputs = dataclasses.replace(case.inputs, block_tables=tables)
    case.cache = dataclasses.replace(case.cache, group=1)
    assert torch.equal(case.run(Attention(device)), expected)


@pytest.mark.parametrize(
    ("dtype", "options", "words"),
    [
        (
            torch.float16,
            {"cache_dtype": "bfloat16"},
            "dtype of the cache must be one of float16, int8, fp8_e4m3 ",
        ),
        (torch.float32, {"head_size": 257}, "head_size must be at most 256 .*, got 257"),
        (torch.float32, {"token_major_keys": False}, "token_major_keys must be true"),
    ],
    ids=str,
)
def test_what_is_not_served_is_refused(
    device: torch.device, dtype: torch.dtype, options: dict[str, Any], words: str
) -> None:
    case = new_case(dtype, [1], [5], **options)
    with pytest.raises(KernelError, match=words):
        case.run(Attention(device))


def test_small_cards_have_the_tables_of_ampere() -> None:
    """Cards of 12.0 are newer than Hopper's, and have the shared memory of 8.6."""
    for dtype, cache_dtype in ((torch.bfloat16, "bfloat16"), (torch.float16, "fp8_e4m3"), (torch.float32, "int8")):
        for batch_invariant in (False, True):
            old, hopper, new, small = (
                attention_config(dtype, cache_dtype, 128, capability, capped=False, batch_invariant=batch_invariant)
                for capability in (86, 90, 100, 120)
            )
            assert small == old and new == hopper
            assert (old == hopper) == (dtype == torch.float32)
