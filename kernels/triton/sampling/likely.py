"""The most likely tokens of a row in their order, down to a logit that `threshold` has found."""

from __future__ import annotations

import triton
import triton.language as tl

from paged_backend.kernels.triton.sampling.arithmetic import CHANGED, GROUP, float_of, rank_of, row_of, word_in
from paged_backend.kernels.triton.sampling.threshold import TILE, active_groups, tokens_of_groups

LIST_JOB, LIST_COUNT, LIST_FIRST, LIST_NORM = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
"""Lines of the table of lists (tables.py)."""
COUNTS = (16, 256)
"""Tokens that are sorted in one go; longer lists are not for this file."""

_LAST = tl.constexpr(2**63 - 1)


@triton.jit(do_not_specialize=["num_jobs", "num_lists", "out_tokens", "out_logprobs"])
def likely_kernel(
    logits,
    row_stride,
    changed,
    vocab_size,
    jobs,
    num_jobs,
    lists,
    num_lists,
    num_blocks,
    peaks,
    group_peaks,
    active,
    noted,
    lowest,
    norms,
    out_tokens,
    out_logprobs,
    BLOCKS: tl.constexpr,
    GROUPS: tl.constexpr,
    COUNT: tl.constexpr,
    BEST: tl.constexpr,
):
    """One list: a row's tokens and their log-probabilities, the most likely first, of equals the smaller id.

    Args:
        noted: int64 [num_lists, 2 * COUNT], memory.
        norms: float64, by a list's LIST_NORM what its logits lie above their log-probabilities.
        out_tokens, out_logprobs: a list's begin at its LIST_FIRST. -1 and -inf where logits are not numbers.
        COUNT: at least as many as any list is long.
        BEST: whether a token is -1 where it is ruled out; and a changed row holds log-probabilities already.
    """
    index = tl.program_id(0)
    job = word_in(lists, num_lists, LIST_JOB, index)
    count = word_in(lists, num_lists, LIST_COUNT, index).to(tl.int32)
    first = word_in(lists, num_lists, LIST_FIRST, index)
    blocks = tl.arange(0, BLOCKS)
    peak = tl.max(tl.load(peaks + job * num_blocks + blocks, mask=blocks < num_blocks, other=float("-inf")))
    places = tl.arange(0, COUNT)
    tokens = tl.full((COUNT,), -1, tl.int64)
    logprobs = tl.full((COUNT,), float("-inf"), tl.float32)
    if (peak > float("-inf")) & (peak < float("inf")):
        least = tl.load(lowest + job)
        num_groups = num_blocks * (GROUPS // BLOCKS)
        groups = tl.arange(0, GROUPS)
        of_groups = tl.load(group_peaks + job * num_groups + groups, mask=groups < num_groups, other=float("-inf"))
        of_job = active + job * num_groups
        num_active = active_groups(of_groups, num_groups, least, of_job)
        row = row_of(logits, row_stride, changed, vocab_size, jobs, num_jobs, job)
        larger = noted + index.to(tl.int64) * (2 * COUNT)
        equal = larger + COUNT
        num_larger = tl.full((), 0, tl.int32)
        num_equal = tl.full((), 0, tl.int32)
        for start in range(0, num_active, TILE):
            ids = tl.reshape(tokens_of_groups(of_job, start, num_active), (TILE * GROUP,))
            values = tl.load(row + ids, mask=ids < vocab_size, other=float("nan"))
            # Falling logits, and of equals rising ids, are rising numbers.
            order = ((-1 - rank_of(tl.where(values == 0.0, 0.0, values))) << 32) | ids.to(tl.int64)
            num_larger = _noted(larger, num_larger, count, order, values > least)
            num_equal = _noted(equal, num_equal, count, order, values == least)
        tl.debug_barrier()
        is_larger = places < num_larger
        order = tl.load(larger + places, mask=is_larger, other=_LAST)
        rest = places - num_larger
        is_equal = (rest >= 0) & (rest < num_equal) & (places < count)
        order = tl.where(is_larger, order, tl.load(equal + rest, mask=is_equal, other=_LAST))
        order = tl.sort(order)
        tokens = order & 0xFFFFFFFF
        values = float_of(-1 - (order >> 32))
        is_ruled_out = values == float("-inf")
        logprobs = (values.to(tl.float64) - tl.load(norms + word_in(lists, num_lists, LIST_NORM, index))).to(tl.float32)
        if BEST:
            logprobs = tl.where(word_in(jobs, num_jobs, CHANGED, job) >= 0, values, logprobs)
            tokens = tl.where(is_ruled_out, -1, tokens)
    tl.store(out_tokens + first + places, tokens, mask=places < count)
    tl.store(out_logprobs + first + places, logprobs, mask=places < count)


@triton.jit
def _noted(memory, num_noted, most, numbers, takes):
    """Writes numbers down after those that are there, as far as `most`; returns how many there are then."""
    places = num_noted + tl.cumsum(takes.to(tl.int32)) - 1
    tl.store(memory + places, numbers, mask=takes & (places < most))
    return tl.minimum(num_noted + tl.sum(takes.to(tl.int32)), most)
