"""Penalties for tokens that a text has already: by lists that came with a batch, or by counts that stay on a device."""

from __future__ import annotations

import triton
import triton.language as tl

from paged_backend.kernels import token_counts
from paged_backend.kernels.triton.sampling.arithmetic import BLOCK, CHANGED, COUNTED, ROW, word_in

IN_PROMPT = tl.constexpr(token_counts.IN_PROMPT)


@triton.jit
def penalised(values, taken, repetition, frequency, presence):
    """The logits of tokens that are in the prompt or the output.

    Args:
        taken: int32, how often each is in the output, and IN_PROMPT.
    """
    # By a division or a product of its own, as everywhere: a factor's rounding would be another one.
    values = tl.where(values > 0.0, tl.div_rn(values, repetition), values * repetition)
    number = (taken & (IN_PROMPT - 1)).to(tl.float32)
    return tl.where(number > 0.0, values - frequency * number - presence, values)


@triton.jit(do_not_specialize=["num_jobs", "num_changed"])
def penalise_kernel(logits, row_stride, changed, vocab_size, jobs, num_jobs, num_changed, counts, penalties):
    """A block of the copy of a row that is counted, with the penalties of its tokens.

    Args:
        num_changed: copies that hold their rows' changes already; the others are made here.
        counts, penalties: see `TokenCounts`.
    """
    job = tl.program_id(0).to(tl.int64)
    place = word_in(jobs, num_jobs, COUNTED, job)
    if place >= 0:
        tokens = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        in_row = tokens < vocab_size
        copy = word_in(jobs, num_jobs, CHANGED, job)
        own = changed + copy * vocab_size
        row = logits + word_in(jobs, num_jobs, ROW, job) * row_stride
        if copy < num_changed:
            row = own
        values = tl.load(row + tokens, mask=in_row, other=0.0)
        taken = tl.load(counts + place * vocab_size + tokens, mask=in_row, other=0)
        repetition = tl.load(penalties + 3 * place)
        frequency = tl.load(penalties + 3 * place + 1)
        presence = tl.load(penalties + 3 * place + 2)
        changes = penalised(values, taken, repetition, frequency, presence)
        tl.store(own + tokens, tl.where(taken != 0, changes, values), mask=in_row)
