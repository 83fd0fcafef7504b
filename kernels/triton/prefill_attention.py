"""Attention of sequences with several new tokens: prompts, and chunks of them behind what is cached.

A tile of rows holds some positions of a sequence for all heads of a group. Which ones, a program finds in query_start,
so the grid depends on shapes alone. Sequences with one new token are left as they are (`decode_attention`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from paged_backend.kernels.triton.attention_tile import attended, merged, normalized, nothing
from paged_backend.kernels.triton.context_splits import split_begin, split_of


@triton.jit
def sequence_of_tile(query_start, num_sequences, tile, BLOCK_Q: tl.constexpr, CHUNK: tl.constexpr):
    """The last sequence s whose tiles begin at query_start[s] // BLOCK_Q + s <= tile; one has at least as many as it
    needs up to the next one's first."""
    count = 0
    for first in range(0, num_sequences, CHUNK):
        s = first + tl.arange(0, CHUNK)
        begins = tl.load(query_start + s, mask=s < num_sequences, other=0) // BLOCK_Q + s
        count += tl.sum(((begins <= tile) & (s < num_sequences)).to(tl.int32), axis=0)
    return count - 1


@triton.jit(do_not_specialize=["num_sequences", "table_stride"])
def prefill_kernel(
    query,
    out,
    keys,
    values,
    key_scales,
    value_scales,
    block_tables,
    query_start,
    context_lens,
    num_sequences,
    query_stride,
    table_stride,
    block_stride,
    scales_stride,
    group_size,
    num_kv_heads,
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
    """BLOCK_M // HEADS positions of HEADS heads of a group. Grid (row tiles, head tiles).

    Args:
        SPLIT_UNIT: that of `decode_attention`, for the same bits as it gives; or 0 for one pass, which is faster.
    """
    BLOCK_Q: tl.constexpr = BLOCK_M // HEADS
    # The last tiles of a prompt have the most keys: they begin first, lest a few programs are waited for at the end.
    tile, head_tile = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    sequence = sequence_of_tile(query_start, num_sequences, tile, BLOCK_Q, 256)
    begin_row = tl.load(query_start + sequence)
    num_rows = tl.load(query_start + sequence + 1) - begin_row
    first_row = (tile - begin_row // BLOCK_Q - sequence) * BLOCK_Q
    if (num_rows <= 1) | (first_row >= num_rows):
        return
    context_len = tl.load(context_lens + sequence)
    r, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    row = first_row + r // HEADS
    head = head_tile // num_kv_heads * HEADS + r % HEADS
    kv_head = head_tile % num_kv_heads
    there = (r < BLOCK_Q * HEADS) & (row < num_rows) & (head < group_size)
    used = there[:, None] & (d < HEAD_SIZE)[None, :]
    first_row64 = (begin_row + first_row).to(tl.int64)
    columns = ((kv_head * group_size + head) * HEAD_SIZE)[:, None] + d[None, :]
    places = (r // HEADS * query_stride)[:, None] + columns
    rows = tl.load(query + first_row64 * query_stride + places, mask=used, other=0.0)
    first_position = context_len - num_rows + first_row
    positions = tl.where(there, context_len - num_rows + row, -1)
    end = tl.minimum(first_position + BLOCK_Q, context_len)
    lowest = tl.maximum(first_position + 1 - sliding_window, 0)
    table = block_tables + sequence.to(tl.int64) * table_stride
    cache = (keys, values, key_scales, value_scales, block_stride, scales_stride)
    scoring = (score_scale, exponent_scale, sliding_window, soft_cap)
    most, total, sums = nothing(BLOCK_M, BLOCK_D)
    begin = lowest // BLOCK_N * BLOCK_N
    if SPLIT_UNIT > 0:
        first_split = split_of(lowest, SPLIT_UNIT)
        for later in range(0, split_of(end - 1, SPLIT_UNIT) + 1 - first_split):
            split = first_split + later
            part = attended(
                nothing(BLOCK_M, BLOCK_D),
                rows,
                positions,
                tl.maximum(split_begin(split, SPLIT_UNIT), begin),
                tl.minimum(split_begin(split + 1, SPLIT_UNIT), end),
                lowest,
                table,
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
            most, total, sums = merged((most, total, sums), part, exponent_scale)
    else:
        if not WINDOWED:
            # Tiles of keys that every row sees need no masks.
            begin = (first_position + 1) // BLOCK_N * BLOCK_N
            most, total, sums = attended(
                (most, total, sums),
                rows,
                positions,
                0,
                begin,
                0,
                table,
                cache,
                kv_head,
                scoring,
                False,
                WINDOWED,
                CAPPED,
                BLOCK_SIZE,
                HEAD_SIZE,
                BLOCK_N,
            )
        most, total, sums = attended(
            (most, total, sums),
            rows,
            positions,
            begin,
            end,
            lowest,
            table,
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
    out_stride = num_kv_heads * group_size * HEAD_SIZE
    places = (r // HEADS * out_stride)[:, None] + columns
    tl.store(out + first_row64 * out_stride + places, normalized(sums, total).to(rows.dtype), mask=used)
