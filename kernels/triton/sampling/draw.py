"""A token for a seed: the largest logit, or the cumulative distribution inverted, from the sums of the blocks."""

from __future__ import annotations

import triton
import triton.language as tl

from paged_backend.kernels.triton.sampling.arithmetic import (
    BLOCK,
    COUNTED,
    JOB,
    PLACE,
    POSITION,
    SEED,
    TEMPERATURE,
    exponent_scale,
    number_in,
    random_word,
    row_of,
    row_units,
    share_of,
    units_of,
    weights,
    word_in,
)


@triton.jit(do_not_specialize=["num_jobs", "num_draws"])
def draw_kernel(
    logits,
    row_stride,
    changed,
    vocab_size,
    jobs,
    num_jobs,
    draws,
    num_draws,
    num_blocks,
    peaks,
    firsts,
    units,
    lowest,
    token_ids,
    counts,
    BLOCKS: tl.constexpr,
):
    """One draw; -1 where a row's logits are not numbers. The token of a row that is counted is counted."""
    draw = tl.program_id(0)
    job = word_in(draws, num_draws, JOB, draw)
    blocks = tl.arange(0, BLOCKS)
    of_job = job * num_blocks + blocks
    block_peaks = tl.load(peaks + of_job, mask=blocks < num_blocks, other=float("-inf"))
    peak = tl.max(block_peaks)
    temperature = number_in(jobs, num_jobs, TEMPERATURE, job)
    token = tl.full((), -1, tl.int64)
    if (peak > float("-inf")) & (peak < float("inf")):
        if temperature == 0.0:
            first = tl.load(firsts + of_job, mask=block_peaks == peak, other=vocab_size)
            token = tl.min(first).to(tl.int64)
        else:
            scale = exponent_scale(temperature)
            own_units = tl.load(units + of_job, mask=blocks < num_blocks, other=0)
            by_peak = row_units(block_peaks, own_units, peak, scale)
            word = random_word(word_in(draws, num_draws, SEED, draw), word_in(jobs, num_jobs, POSITION, job))
            point = share_of(word, tl.sum(by_peak))
            ends = tl.cumsum(by_peak)
            block = tl.sum((ends <= point).to(tl.int32))  # the first whose end is beyond the point
            within = point - tl.sum(tl.where(blocks < block, by_peak, 0))
            block_peak = tl.max(tl.where(blocks == block, block_peaks, float("-inf")))
            row = row_of(logits, row_stride, changed, vocab_size, jobs, num_jobs, job)
            tokens = block * BLOCK + tl.arange(0, BLOCK)
            values = tl.load(row + tokens, mask=tokens < vocab_size, other=float("-inf"))
            values = tl.where(values >= tl.load(lowest + job), values, float("-inf"))
            sums = tl.cumsum(units_of(values, block_peak, scale))
            # Counted by the block's own peak; below the block's sum, whatever rounding says.
            share = within.to(tl.float64) / weights(block_peak, peak, scale).to(tl.float64)
            own_point = tl.minimum(share.to(tl.int64), tl.max(sums) - 1)
            token = (block * BLOCK + tl.sum((sums <= own_point).to(tl.int32))).to(tl.int64)
    tl.store(token_ids + word_in(draws, num_draws, PLACE, draw), token)
    place = word_in(jobs, num_jobs, COUNTED, job)
    if (place >= 0) & (token >= 0):
        # Nobody else draws for it in this step.
        own = counts + place * vocab_size + token
        tl.store(own, tl.load(own) + 1)
