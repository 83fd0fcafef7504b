"""Attention of sequences with one new token: each one's context is split among programs, whose results are merged.

How it is split, its positions say (`context_splits`). A second kernel merges the splits' states in their order, so a
row's bits depend on its own sequence alone. Rows of sequences with any other number of new tokens are left as they are
(`prefill_attention`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from paged_backend.kernels.triton.attention_tile import attended, merged, normalized, nothing
from paged_backend.kernels.triton.context_splits import split_begin, split_of

DECODE_HEADS = 16
"""Query heads of a group, which read the same keys, in a program: the rows of the smallest matrix product, where most
groups leave some of them empty."""

SPLIT_UNIT = 256
"""Keys of a context's first splits; a multiple of every tile of keys."""

MERGE_UNROLLED = 8
"""Splits that a merging program loads at once."""

MERGE_WARPS = 4


@triton.jit(do_not_specialize=["table_stride", "num_programs", "max_splits"])
def decode_splits_kernel(
    query,
    out,
    states,
    split_outs,
    keys,
    values,
    key_scales,
    value_scales,
    block_tables,
    query_start,
    context_lens,
    query_stride,
    table_stride,
    block_stride,
    scales_stride,
    group_size,
    num_kv_heads,
    num_programs,
    max_splits,
    score_scale,
    exponent_scale,
    sliding_window,
    soft_cap,
    SPLIT_UNIT: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One of num_programs for up to HEADS heads of a group in a sequence. Grid (programs, head tiles, S).

    Writes states, float32 [S, head tiles, max_splits, 2, HEADS] (most, total), and split_outs, float32 [S, head tiles,
    max_splits, min(HEADS, group_size), BLOCK_D]; of a context that is one split, out, [T, Hq * HEAD_SIZE].
    """
    program, head_tile, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = tl.load(query_start + sequence).to(tl.int64)
    if tl.load(query_start + sequence + 1) - row != 1:
        return
    context_len = tl.load(context_lens + sequence)
    lowest = tl.maximum(context_len - sliding_window, 0)
    first_split = split_of(lowest, SPLIT_UNIT)
    num_splits = split_of(context_len - 1, SPLIT_UNIT) + 1 - first_split
    if program >= num_splits:
        return
    kv_head = head_tile % num_kv_heads
    r, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    head = head_tile // num_kv_heads * HEADS + r
    there = (r < HEADS) & (head < group_size)
    used = there[:, None] & (d < HEAD_SIZE)[None, :]
    places = (kv_head * group_size + head)[:, None] * HEAD_SIZE + d[None, :]
    tile = tl.load(query + row * query_stride + places, mask=used, other=0.0)
    positions = tl.where(there, context_len - 1, -1)
    cache = (keys, values, key_scales, value_scales, block_stride, scales_stride)
    scoring = (score_scale, exponent_scale, sliding_window, soft_cap)
    state = (sequence * tl.num_programs(1) + head_tile) * max_splits
    for split in range(program, num_splits, num_programs):
        begin = split_begin(first_split + split, SPLIT_UNIT)
        end = tl.minimum(split_begin(first_split + split + 1, SPLIT_UNIT), context_len)
        most, total, sums = attended(
            nothing(BLOCK_M, BLOCK_D),
            tile,
            positions,
            tl.maximum(begin, lowest // BLOCK_N * BLOCK_N),
            end,
            lowest,
            block_tables + sequence * table_stride,
            cache,
            kv_head,
            scoring,
            True,
            WINDOWED,
            CAPPED,
            BLOCK_SIZE,
            HEAD_SIZE,
            BLOCK_N,
        )
        if num_splits == 1:
            place = out + row * num_kv_heads * group_size * HEAD_SIZE + places
            tl.store(place, normalized(sums, total).to(tile.dtype), mask=used)
        else:
            mine = state + split
            tl.store(states + mine * 2 * HEADS + r, most, mask=there)
            tl.store(states + mine * 2 * HEADS + HEADS + r, total, mask=there)
            kept = mine * tl.minimum(group_size, HEADS) * BLOCK_D + r[:, None] * BLOCK_D + d[None, :]
            tl.store(split_outs + kept, sums, mask=there[:, None] & (d >= 0)[None, :])


@triton.jit(do_not_specialize=["max_splits"])
def merge_splits_kernel(
    out,
    states,
    split_outs,
    query_start,
    context_lens,
    group_size,
    num_kv_heads,
    max_splits,
    exponent_scale,
    sliding_window,
    SPLIT_UNIT: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UNROLLED: tl.constexpr,
):
    """Merges what `decode_splits_kernel` left, of contexts of more than one split. Grid (head tiles, S)."""
    head_tile, sequence = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = tl.load(query_start + sequence).to(tl.int64)
    if tl.load(query_start + sequence + 1) - row != 1:
        return
    context_len = tl.load(context_lens + sequence)
    lowest = tl.maximum(context_len - sliding_window, 0)
    num_splits = split_of(context_len - 1, SPLIT_UNIT) + 1 - split_of(lowest, SPLIT_UNIT)
    if num_splits <= 1:
        return
    r, d = tl.arange(0, HEADS), tl.arange(0, BLOCK_D)
    head = head_tile // num_kv_heads * HEADS + r
    first = (sequence * tl.num_programs(0) + head_tile) * max_splits
    most, total, sums = nothing(HEADS, BLOCK_D)
    for base in range(0, num_splits, UNROLLED):
        # No load here waits for a sum, so those of all UNROLLED splits are under way at once.
        for ahead in tl.static_range(UNROLLED):
            split = first + base + ahead
            there = (head < group_size) & (base + ahead + tl.zeros_like(r) < num_splits)
            most2 = tl.load(states + split * 2 * HEADS + r, mask=there, other=float("-inf"))
            total2 = tl.load(states + split * 2 * HEADS + HEADS + r, mask=there, other=0.0)
            kept = split * tl.minimum(group_size, HEADS) * BLOCK_D + r[:, None] * BLOCK_D + d[None, :]
            sums2 = tl.load(split_outs + kept, mask=there[:, None] & (d >= 0)[None, :], other=0.0)
            most, total, sums = merged((most, total, sums), (most2, total2, sums2), exponent_scale)
    used = (head < group_size)[:, None] & (d < HEAD_SIZE)[None, :]
    places = (head_tile % num_kv_heads * group_size + head)[:, None] * HEAD_SIZE + d[None, :]
    place = out + row * num_kv_heads * group_size * HEAD_SIZE + places
    tl.store(place, normalized(sums, total).to(out.dtype.element_ty), mask=used)
