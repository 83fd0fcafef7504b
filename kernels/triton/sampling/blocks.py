"""The first look at logits: each block's largest one, the first token that has it, and the sum of its weights."""

from __future__ import annotations

import triton
import triton.language as tl

from paged_backend.kernels.triton.sampling.arithmetic import (
    BLOCK,
    CHANGED,
    GROUP,
    ROW,
    TEMPERATURE,
    exponent_scale,
    number_in,
    row_of,
    units_of,
    word_in,
)


@triton.jit(do_not_specialize=["num_jobs"])
def blocks_kernel(
    logits,
    row_stride,
    changed,
    vocab_size,
    jobs,
    num_jobs,
    num_blocks,
    peaks,
    firsts,
    units,
    group_peaks,
    lowest,
):
    """One block of one job. With a NaN or +inf in it, before its row's changes or after, its peak is +inf.

    Every job's lowest logit becomes -inf: no filter has raised it yet.
    """
    job = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    row = row_of(logits, row_stride, changed, vocab_size, jobs, num_jobs, job)
    tokens = block * BLOCK + tl.arange(0, BLOCK)
    in_row = tokens < vocab_size
    values = tl.load(row + tokens, mask=in_row, other=float("-inf"))
    is_wrong = (values != values) | (values == float("inf"))
    if word_in(jobs, num_jobs, CHANGED, job) >= 0:
        raw = logits + word_in(jobs, num_jobs, ROW, job) * row_stride
        before = tl.load(raw + tokens, mask=in_row, other=float("-inf"))
        is_wrong |= (before != before) | (before == float("inf"))
    values = tl.where(is_wrong, float("inf"), values)
    peak = tl.max(values)
    place = job * num_blocks + block
    tl.store(peaks + place, peak)
    tl.store(firsts + place, tl.min(tl.where(values == peak, tokens, vocab_size)))
    of_groups = tl.max(tl.reshape(values, (BLOCK // GROUP, GROUP)), axis=1)
    tl.store(group_peaks + place * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP), of_groups)
    if block == 0:
        tl.store(lowest + job, float("-inf"))
    temperature = number_in(jobs, num_jobs, TEMPERATURE, job)
    total = tl.full((), 0, tl.int64)
    if (temperature > 0.0) & (peak < float("inf")):
        total = tl.sum(units_of(values, peak, exponent_scale(temperature)))
    tl.store(units + place, total)


@triton.jit(do_not_specialize=["num_jobs"])
def masses_kernel(
    logits,
    row_stride,
    changed,
    vocab_size,
    jobs,
    num_jobs,
    num_blocks,
    peaks,
    units,
    lowest,
):
    """The sum of a block's weights again, of the tokens that a row's filters have left."""
    job = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    least = tl.load(lowest + job)
    temperature = number_in(jobs, num_jobs, TEMPERATURE, job)
    if (least > float("-inf")) & (temperature > 0.0):
        place = job * num_blocks + block
        peak = tl.load(peaks + place)
        total = tl.full((), 0, tl.int64)
        if peak >= least:
            row = row_of(logits, row_stride, changed, vocab_size, jobs, num_jobs, job)
            tokens = block * BLOCK + tl.arange(0, BLOCK)
            values = tl.load(row + tokens, mask=tokens < vocab_size, other=float("-inf"))
            kept = tl.where(values >= least, values, float("-inf"))
            total = tl.sum(units_of(kept, peak, exponent_scale(temperature)))
        tl.store(units + place, total)
