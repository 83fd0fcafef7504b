"""Log-probabilities and ranks of tokens, under the logits as the model made them."""

from __future__ import annotations

import triton
import triton.language as tl

from paged_backend.kernels.triton.sampling.arithmetic import (
    BLOCK,
    LOG2_UNITS,
    ROW,
    TEMPERATURE,
    exponent_scale,
    number_in,
    row_units,
    word_in,
)

_LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["num_jobs"])
def norms_kernel(jobs, num_jobs, num_blocks, peaks, units, norms, BLOCKS: tl.constexpr):
    """float64: the logarithm of the sum of a job's exponentials; NaN where its logits are not numbers."""
    job = tl.program_id(0).to(tl.int64)
    blocks = tl.arange(0, BLOCKS)
    block_peaks = tl.load(peaks + job * num_blocks + blocks, mask=blocks < num_blocks, other=float("-inf"))
    peak = tl.max(block_peaks)
    norm = tl.full((), float("nan"), tl.float64)
    if (peak > float("-inf")) & (peak < float("inf")):
        own_units = tl.load(units + job * num_blocks + blocks, mask=blocks < num_blocks, other=0)
        scale = exponent_scale(number_in(jobs, num_jobs, TEMPERATURE, job))
        total = tl.sum(row_units(block_peaks, own_units, peak, scale)).to(tl.float64)
        norm = peak.to(tl.float64) + tl.log(total) - LOG2_UNITS * _LN_2
    tl.store(norms + job, norm)


@triton.jit(do_not_specialize=["num_jobs", "num_described", "logprobs", "ranks"])
def logprobs_kernel(logits, row_stride, jobs, num_jobs, described, num_described, norms, token_ids, logprobs, ranks):
    """One described token: its log-probability, and a rank to which `ranks_kernel` adds."""
    index = tl.program_id(0)
    place = tl.load(described + index)
    job = tl.load(described + num_described + index)
    token = tl.load(token_ids + place)
    if token >= 0:
        logit = tl.load(logits + word_in(jobs, num_jobs, ROW, job) * row_stride + token)
        tl.store(logprobs + place, (logit.to(tl.float64) - tl.load(norms + job)).to(tl.float32))
        tl.store(ranks + place, 1)


@triton.jit(do_not_specialize=["num_jobs", "num_described", "ranks"])
def ranks_kernel(
    logits, row_stride, vocab_size, jobs, num_jobs, described, num_described, num_blocks, peaks, token_ids, ranks
):
    """Adds a block's tokens that are more likely than a described one."""
    index = tl.program_id(0)
    block = tl.program_id(1)
    place = tl.load(described + index)
    job = tl.load(described + num_described + index)
    token = tl.load(token_ids + place)
    if token >= 0:
        row = logits + word_in(jobs, num_jobs, ROW, job) * row_stride
        logit = tl.load(row + token)
        if tl.load(peaks + job * num_blocks + block) > logit:
            tokens = block * BLOCK + tl.arange(0, BLOCK)
            values = tl.load(row + tokens, mask=tokens < vocab_size, other=float("-inf"))
            tl.atomic_add(ranks + place, tl.sum((values > logit).to(tl.int32)), sem="relaxed")
