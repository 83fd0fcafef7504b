"""The logit that a token needs: of the k largest, or of the most likely tokens that make up a share of all weights.

No sort. What a row's measure (how many tokens, or the sum of their weights) is at and above a logit falls as the logit
rises, so the largest logit at which it reaches what is wanted is found by bisection over the floats' ranks. A bound
that is seldom far below it comes from the groups' largest logits alone; then only groups that reach the bound are
looked at, and once no more than LIST tokens are in question these are bisected in registers. All sums are of whole
numbers: ties, the order of threads and how often a row was narrowed make no difference.
"""

from __future__ import annotations

import triton
import triton.language as tl

from paged_backend.kernels.triton.sampling.arithmetic import (
    GROUP,
    MIN_P,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    UNITS,
    exponent_scale,
    float_of,
    number_in,
    rank_of,
    row_of,
    row_units,
    units_of,
    weights,
    word_in,
)

LIST = tl.constexpr(4096)
"""Tokens that are bisected in registers."""
TILE = tl.constexpr(16)
"""Groups that are looked at in one go."""
_SLACK = tl.constexpr(1e-6)
"""Of all weights: more than their sum by blocks, each by its own peak, differs from their sum by the row's peak."""


@triton.jit
def _bound_by_groups(of_groups, low, high, wanted, spare, peak, scale, MASS: tl.constexpr):
    """A rank of `low` .. high - 1 at and above which the measure reaches `wanted`, seldom far below the last; or `low`.

    Each group that reaches x has a token that does. And no group's tokens below x weigh more than if all weighed what
    the largest does, or what x does: where that is no more than can be spared, those at and above x suffice.
    """
    while high - low > 1:
        middle = low + (high - low) // 2
        x = float_of(middle)
        if MASS:
            below = tl.sum(weights(tl.minimum(of_groups, x), peak, scale).to(tl.float64)) * GROUP
            reaches = below * UNITS <= spare
        else:
            reaches = tl.sum((of_groups >= x).to(tl.int64)) >= wanted
        low = tl.where(reaches, middle, low)
        high = tl.where(reaches, high, middle)
    return low


@triton.jit
def active_groups(of_groups, num_groups, least, active):
    """Writes down the groups that have a token of `least` or more, in their order; returns how many.

    Args:
        of_groups: the groups' largest logits, and then something up to a power of two.
        active: int32 [num_groups], memory for them.
    """
    reaches = (of_groups >= least) & (tl.arange(0, of_groups.shape[0]) < num_groups)
    places = tl.cumsum(reaches.to(tl.int32)) - 1
    tl.store(active + places, tl.arange(0, of_groups.shape[0]), mask=reaches)
    tl.debug_barrier()
    return tl.sum(reaches.to(tl.int32))


@triton.jit
def tokens_of_groups(active, start, num_active):
    """int32 [TILE, GROUP]: the tokens of TILE active groups from `start` on; past the last, beyond any vocabulary."""
    places = start + tl.arange(0, TILE)
    groups = tl.load(active + places, mask=places < num_active, other=1 << 23)
    return groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]


@triton.jit
def _measures(row, vocab_size, active, num_active, first, second, third, peak, scale, MASS: tl.constexpr):
    """For three logits, how many of the active groups' tokens reach them, and the measures of these; all int64."""
    count_1 = tl.zeros((TILE, GROUP), tl.int32)
    count_2 = tl.zeros((TILE, GROUP), tl.int32)
    count_3 = tl.zeros((TILE, GROUP), tl.int32)
    sum_1 = tl.zeros((TILE, GROUP), tl.int64)
    sum_2 = tl.zeros((TILE, GROUP), tl.int64)
    sum_3 = tl.zeros((TILE, GROUP), tl.int64)
    for start in range(0, num_active, TILE):
        tokens = tokens_of_groups(active, start, num_active)
        values = tl.load(row + tokens, mask=tokens < vocab_size, other=float("nan"))
        count_1 += (values >= first).to(tl.int32)
        count_2 += (values >= second).to(tl.int32)
        count_3 += (values >= third).to(tl.int32)
        if MASS:
            units = units_of(values, peak, scale)
            sum_1 += tl.where(values >= first, units, 0)
            sum_2 += tl.where(values >= second, units, 0)
            sum_3 += tl.where(values >= third, units, 0)
    num_1 = tl.sum(tl.sum(count_1, 1), 0).to(tl.int64)
    num_2 = tl.sum(tl.sum(count_2, 1), 0).to(tl.int64)
    num_3 = tl.sum(tl.sum(count_3, 1), 0).to(tl.int64)
    if MASS:
        return (
            num_1,
            num_2,
            num_3,
            tl.sum(tl.sum(sum_1, 1), 0),
            tl.sum(tl.sum(sum_2, 1), 0),
            tl.sum(tl.sum(sum_3, 1), 0),
        )
    else:
        return num_1, num_2, num_3, num_1, num_2, num_3


@triton.jit
def _listed(row, vocab_size, active, num_active, low, high, listed):
    """Writes down the active groups' logits of low <= logit < high, LIST at most; returns how many."""
    num_listed = tl.full((), 0, tl.int32)
    for start in range(0, num_active, TILE):
        tokens = tl.reshape(tokens_of_groups(active, start, num_active), (TILE * GROUP,))
        values = tl.load(row + tokens, mask=tokens < vocab_size, other=float("nan"))
        takes = (values >= low) & (values < high)
        places = num_listed + tl.cumsum(takes.to(tl.int32)) - 1
        tl.store(listed + places, values, mask=takes)
        num_listed += tl.sum(takes.to(tl.int32))
    tl.debug_barrier()
    return num_listed


@triton.jit
def _edge(
    row, vocab_size, of_groups, num_groups, active, listed, least, wanted, spare, peak, scale, MASS: tl.constexpr
):
    """The largest logit from `least` on at and above which the measure reaches `wanted`; `least` if there is none."""
    high = rank_of(peak) + 1
    low = _bound_by_groups(of_groups, rank_of(least), high, wanted, spare, peak, scale, MASS)
    num_active = active_groups(of_groups, num_groups, float_of(low), active)
    num_low = num_active.to(tl.int64) * GROUP
    num_high = tl.full((), 0, tl.int64)
    above = tl.full((), 0, tl.int64)
    while (num_low - num_high > LIST) & (high - low > 1):
        width = high - low
        rank_1, rank_2, rank_3 = low + width // 4, low + width // 2, low + width * 3 // 4
        num_1, num_2, num_3, sum_1, sum_2, sum_3 = _measures(
            row, vocab_size, active, num_active, float_of(rank_1), float_of(rank_2), float_of(rank_3), peak, scale, MASS
        )
        if sum_3 >= wanted:
            low, num_low = rank_3, num_3
        elif sum_2 >= wanted:
            low, num_low, high, num_high, above = rank_2, num_2, rank_3, num_3, sum_3
        elif (sum_1 >= wanted) | (rank_1 == low):
            low, num_low, high, num_high, above = rank_1, num_1, rank_2, num_2, sum_2
        else:
            high, num_high, above = rank_1, num_1, sum_1
    if high - low > 1:
        # The peak itself is the last float that there may be: what comes after it may be +inf.
        num_listed = _listed(row, vocab_size, active, num_active, float_of(low), float_of(high), listed)
        places = tl.arange(0, LIST)
        values = tl.load(listed + places, mask=places < num_listed, other=float("nan"))
        measures = (values == values).to(tl.int64)
        if MASS:
            measures = units_of(values, peak, scale)
        while high - low > 1:
            middle = low + (high - low) // 2
            reaches = above + tl.sum(tl.where(values >= float_of(middle), measures, 0)) >= wanted
            low = tl.where(reaches, middle, low)
            high = tl.where(reaches, high, middle)
    return float_of(low)


@triton.jit
def _not_below(number):
    """The least float32 that is not below a float64."""
    rounded = tl.maximum(number, -3.4028234663852886e38).to(tl.float32)
    return tl.where(rounded.to(tl.float64) < number, float_of(rank_of(rounded) + 1), rounded)


@triton.jit(do_not_specialize=["num_jobs"])
def threshold_kernel(
    logits,
    row_stride,
    changed,
    vocab_size,
    jobs,
    num_jobs,
    num_blocks,
    peaks,
    units,
    group_peaks,
    active,
    listed,
    lowest,
    BLOCKS: tl.constexpr,
    GROUPS: tl.constexpr,
    MASS: tl.constexpr,
):
    """Raises one job's lowest logit: by min_p and top_k, or (MASS) by top_p, a share of what `units` hold by then.

    Not for a temperature of 0, to which no filter matters.
    """
    job = tl.program_id(0).to(tl.int64)
    top_p = number_in(jobs, num_jobs, TOP_P, job)
    min_p = number_in(jobs, num_jobs, MIN_P, job)
    top_k = word_in(jobs, num_jobs, TOP_K, job)
    temperature = number_in(jobs, num_jobs, TEMPERATURE, job)
    if MASS:
        searches = top_p < 1.0
        applies = searches
    else:
        searches = (top_k > 0) & (top_k < vocab_size)
        applies = searches | (min_p > 0.0)
    if applies & (temperature != 0.0):
        blocks = tl.arange(0, BLOCKS)
        block_peaks = tl.load(peaks + job * num_blocks + blocks, mask=blocks < num_blocks, other=float("-inf"))
        peak = tl.max(block_peaks)
        if (peak > float("-inf")) & (peak < float("inf")):
            least = tl.load(lowest + job)
            scale = tl.full((), 0.0, tl.float32)
            if temperature > 0.0:
                scale = exponent_scale(temperature)
                if min_p > 0.0:
                    least = tl.maximum(least, _not_below(peak.to(tl.float64) + temperature * tl.log(min_p)))
            if searches:
                row = row_of(logits, row_stride, changed, vocab_size, jobs, num_jobs, job)
                num_groups = num_blocks * (GROUPS // BLOCKS)
                groups = tl.arange(0, GROUPS)
                of_groups = tl.load(
                    group_peaks + job * num_groups + groups, mask=groups < num_groups, other=float("-inf")
                )
                wanted = top_k
                spare = 0.0
                if MASS:
                    own_units = tl.load(units + job * num_blocks + blocks, mask=blocks < num_blocks, other=0)
                    total = tl.sum(row_units(block_peaks, own_units, peak, scale)).to(tl.float64)
                    wanted = total * top_p
                    spare = total - wanted - total * _SLACK
                own_active, own_list = active + job * num_groups, listed + job * LIST
                least = _edge(
                    row,
                    vocab_size,
                    of_groups,
                    num_groups,
                    own_active,
                    own_list,
                    least,
                    wanted,
                    spare,
                    peak,
                    scale,
                    MASS,
                )
            tl.store(lowest + job, least)
