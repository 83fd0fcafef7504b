"""What decode and prefill attention share, to the bit: how a tile of queries goes through tiles of keys.

Rows of a tile are the query heads of one group (those that read the same key/value head), for one position or several.
Keys come in tiles of BLOCK_N from position 0 on, whatever is computed beside them, so a row sees the same tiles in any
batch. In a tile every step is either exact in any order (the largest score, products, single operations), or has its
order written down: sums over a row are a binary tree (`row_sums`), sums along a matrix product are the matrix unit's,
which takes 16 at a time in order, products that are added are fused by name (`tl.fma`), and nowhere else is a product
added to anything. A masked key adds exactly nothing, and so does a whole tile of them.

Letters as in `interface`. A row's running state is (most, total, out): its largest score so far, the sum of weights
relative to it, and the weighted sum of values, [BLOCK_M], [BLOCK_M] and [BLOCK_M, BLOCK_D], in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LEVELS = tl.constexpr(8)
"""Halvings of the widest tile of keys."""


@triton.jit
def row_sums(x, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """[BLOCK_M, BLOCK_N] to [BLOCK_M]: the halves added, and their halves, so that the order does not depend on which
    thread holds what. Distant numbers first: those are mostly of the same thread."""
    for level in tl.static_range(_LEVELS):
        if BLOCK_N >> level > 1:
            x = tl.sum(tl.reshape(x, (BLOCK_M, 2, BLOCK_N >> (level + 1))), axis=1)
    return tl.reshape(x, (BLOCK_M,))


@triton.jit
def nothing(BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """The state of rows that have seen no key."""
    most = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    return most, tl.zeros((BLOCK_M,), tl.float32), tl.zeros((BLOCK_M, BLOCK_D), tl.float32)


@triton.jit
def merged(state, later, exponent_scale):
    """The state of rows that have seen what both states have; the second's keys come after the first's."""
    most, total, out = state
    most2, total2, out2 = later
    top = tl.maximum(most, most2)
    finite = tl.where(top == float("-inf"), 0.0, top)
    old = tl.exp2((most - finite) * exponent_scale)
    new = tl.exp2((most2 - finite) * exponent_scale)
    return top, tl.fma(total, old, total2 * new), tl.fma(out, old[:, None], out2 * new[:, None])


@triton.jit
def normalized(out, total):
    """The weighted mean of values; 0 for rows that have seen no key."""
    return out / tl.where(total == 0.0, 1.0, total)[:, None]


@triton.jit
def _as(numbers, dtype: tl.constexpr):
    """Cached numbers in the queries' dtype, which holds them exactly."""
    if numbers.dtype == dtype:
        return numbers
    else:
        # By way of float32: what makes bfloat16 of 8 bits at once is a slow step.
        return numbers.to(tl.float32).to(dtype)


@triton.jit
def attended(
    state,
    rows,
    positions,
    begin,
    end,
    lowest,
    table,
    cache,
    kv_head,
    scoring,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The state of rows after the keys begin .. end - 1 of their sequence.

    Args:
        state: before them.
        rows: the queries, [BLOCK_M, BLOCK_D], zeros past HEAD_SIZE.
        positions: int32 [BLOCK_M]; a row at -1 sees nothing.
        begin: a multiple of BLOCK_N.
        lowest: the first key that any row sees; the table may hold anything for earlier ones.
        table: the sequence's blocks.
        cache: (keys, values, their scales or None, None, numbers between blocks, scales between blocks).
        scoring: (score_scale, exponent_scale, sliding_window, soft_cap): the first is for products that get a soft cap,
            the second for what becomes an exponent of 2.
        MASKED: whether some row does not see some key of these, or they end within a tile.
    """
    most, total, out = state
    keys, values, key_scales, value_scales, block_stride, scales_stride = cache
    score_scale, exponent_scale, sliding_window, soft_cap = scoring
    BLOCK_M: tl.constexpr = rows.shape[0]
    BLOCK_D: tl.constexpr = rows.shape[1]
    d = tl.arange(0, BLOCK_D)
    # A tile's blocks are looked up while the tile before is loaded, so no load of keys waits for one of the table.
    j = begin + tl.arange(0, BLOCK_N)
    blocks = tl.load(table + j // BLOCK_SIZE, mask=(j >= lowest) & (j < end), other=0)
    for start in range(begin, end, BLOCK_N):
        j = start + tl.arange(0, BLOCK_N)
        known = (j >= lowest) & (j < end) if MASKED else j >= 0
        wide_blocks = blocks.to(tl.int64)
        tokens = kv_head * BLOCK_SIZE + j % BLOCK_SIZE
        places = (wide_blocks * block_stride + tokens * HEAD_SIZE)[:, None] + d[None, :]
        scale_places = wide_blocks * scales_stride + tokens
        next_j = j + BLOCK_N
        blocks = tl.load(table + next_j // BLOCK_SIZE, mask=(next_j >= lowest) & (next_j < end), other=0)
        # A key that is not known may be read, as the products with it are masked. Its value may not, as 0 times what is
        # no number would be none.
        in_head = (d < HEAD_SIZE)[None, :]
        if HEAD_SIZE != BLOCK_D:
            key = tl.load(keys + places, mask=in_head, other=0.0)
        else:
            key = tl.load(keys + places)
        if MASKED or HEAD_SIZE != BLOCK_D:
            value = tl.load(values + places, mask=known[:, None] & in_head, other=0.0)
        else:
            value = tl.load(values + places)
        scores = tl.dot(rows, tl.trans(_as(key, rows.dtype)), input_precision="ieee")
        if key_scales is not None:
            scores = scores * tl.load(key_scales + scale_places, mask=known, other=0.0)[None, :]
        if CAPPED:
            # tanh(x) as 1 - 2 / (e^2x + 1)
            scores = soft_cap * (1.0 - 2.0 / (tl.exp2(scores * score_scale) + 1.0))
        if MASKED:
            seen = j[None, :] <= positions[:, None]
            if WINDOWED:
                seen = seen & (j[None, :] > positions[:, None] - sliding_window)
            scores = tl.where(seen, scores, float("-inf"))
        top = tl.maximum(most, tl.max(scores, axis=1))
        finite = tl.where(top == float("-inf"), 0.0, top)
        old = tl.exp2((most - finite) * exponent_scale)
        weights = tl.exp2(tl.fma(scores, exponent_scale, -(finite * exponent_scale)[:, None]))
        sums = row_sums(weights, BLOCK_M, BLOCK_N)
        if key_scales is not None:
            # Values are multiplied as the numbers they are, and weights have their scales: times about the largest
            # number of a head, lest they are too small for float16; and so has what they are divided by in the end.
            lift: tl.constexpr = 128.0 if values.dtype.element_ty == tl.int8 else 512.0
            sums = sums * lift
            weights = weights * (tl.load(value_scales + scale_places, mask=known, other=0.0) * lift)[None, :]
        total = tl.fma(total, old, sums)
        out = tl.dot(weights.to(rows.dtype), _as(value, rows.dtype), out * old[:, None], input_precision="ieee")
        most = top
    return most, total, out
