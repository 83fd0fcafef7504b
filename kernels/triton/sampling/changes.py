"""A row's logits changed before a token is drawn: masks and sets of tokens, biases, penalties (`LogitChanges`)."""

from __future__ import annotations

import triton
import triton.language as tl

from paged_backend.kernels.triton.sampling.arithmetic import BLOCK
from paged_backend.kernels.triton.sampling.penalties import IN_PROMPT, penalised

CHANGED_ROW, MASK, RESTRICTS, NORM = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
COUNTS, REPETITION, FREQUENCY, PRESENCE = tl.constexpr(4), tl.constexpr(5), tl.constexpr(6), tl.constexpr(7)
ALLOWED, SUPPRESSED, BIASED, PROMPT = tl.constexpr(8), tl.constexpr(9), tl.constexpr(10), tl.constexpr(11)
OUTPUT, END, BIASES = tl.constexpr(12), tl.constexpr(13), tl.constexpr(14)
"""Lines of the table of changes (change_table.py)."""

_TOKENS = tl.constexpr(1024)
"""Of a list, looked at in one go."""


@triton.jit
def _line(table, num_changed, line, index):
    return tl.load(table + line * num_changed + index).to(tl.int64)


@triton.jit
def _number(table, num_changed, line, index):
    return tl.load(table + line * num_changed + index).to(tl.float32, bitcast=True)


@triton.jit
def _is_allowed(masks, num_words, mask, tokens, in_row):
    words = tl.load(masks + mask * num_words + tokens // 32, mask=in_row, other=0)
    return ((words >> (tokens % 32)) & 1) != 0


@triton.jit(do_not_specialize=["num_changed", "num_words"])
def copy_kernel(logits, row_stride, vocab_size, table, num_changed, masks, num_words, norms, changed, counts):
    """A block of a row that is changed: what its mask leaves, or nothing where only some tokens are allowed.

    Args:
        table: int32 [15, num_changed].
        masks: int32 [M, num_words].
        norms: float64, by a row's NORM what is subtracted first; -1 for nothing.
        changed: float32 [num_changed, vocab_size].
        counts: int32, by a row's COUNTS as many as there are tokens: here made 0.
    """
    index = tl.program_id(0).to(tl.int64)
    tokens = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    in_row = tokens < vocab_size
    is_kept = in_row
    if _line(table, num_changed, RESTRICTS, index) != 0:
        is_kept = tokens < 0
    mask = _line(table, num_changed, MASK, index)
    if mask >= 0:
        is_kept = is_kept & _is_allowed(masks, num_words, mask, tokens, in_row)
    row = logits + _line(table, num_changed, CHANGED_ROW, index) * row_stride
    values = tl.load(row + tokens, mask=is_kept, other=float("-inf"))
    norm = _line(table, num_changed, NORM, index)
    if norm >= 0:
        values = (values.to(tl.float64) - tl.load(norms + norm)).to(tl.float32)
    tl.store(changed + index * vocab_size + tokens, values, mask=in_row)
    place = _line(table, num_changed, COUNTS, index)
    if place >= 0:
        tl.store(counts + place * vocab_size + tokens, 0, mask=in_row)


@triton.jit
def _penalise(own, counts, token_ids, begin, end, repetition, frequency, presence):
    """Changes the tokens of a list, each once: whoever takes its count away changes it."""
    for start in range(begin, end, _TOKENS):
        places = start + tl.arange(0, _TOKENS)
        tokens = tl.load(token_ids + places, mask=places < end, other=0)
        taken = tl.atomic_xchg(counts + tokens, 0, mask=places < end, sem="relaxed")
        is_ours = (places < end) & (taken != 0)
        values = tl.load(own + tokens, mask=is_ours, other=0.0)
        tl.store(own + tokens, penalised(values, taken, repetition, frequency, presence), mask=is_ours)


@triton.jit(do_not_specialize=["num_changed", "num_words", "token_ids"])
def change_kernel(
    logits,
    row_stride,
    vocab_size,
    table,
    num_changed,
    token_ids,
    masks,
    num_words,
    norms,
    changed,
    counts,
):
    """All that names tokens, of one row, list after list.

    Args:
        token_ids: int32, the lists of a row one after the other, from its ALLOWED to its END; and after all rows' lists
            the bits of biases, a row's from its BIASES on.
    """
    index = tl.program_id(0).to(tl.int64)
    own = changed + index * vocab_size
    allowed = _line(table, num_changed, ALLOWED, index)
    suppressed = _line(table, num_changed, SUPPRESSED, index)
    biased = _line(table, num_changed, BIASED, index)
    prompt = _line(table, num_changed, PROMPT, index)
    output = _line(table, num_changed, OUTPUT, index)
    end = _line(table, num_changed, END, index)
    if allowed < suppressed:
        row = logits + _line(table, num_changed, CHANGED_ROW, index) * row_stride
        norm = _line(table, num_changed, NORM, index)
        mask = _line(table, num_changed, MASK, index)
        for start in range(allowed, suppressed, _TOKENS):
            places = start + tl.arange(0, _TOKENS)
            tokens = tl.load(token_ids + places, mask=places < suppressed, other=0)
            is_kept = places < suppressed
            if mask >= 0:
                is_kept = is_kept & _is_allowed(masks, num_words, mask, tokens, is_kept)
            values = tl.load(row + tokens, mask=is_kept, other=0.0)
            if norm >= 0:
                values = (values.to(tl.float64) - tl.load(norms + norm)).to(tl.float32)
            tl.store(own + tokens, values, mask=is_kept)
        tl.debug_barrier()
    for start in range(suppressed, biased, _TOKENS):
        places = start + tl.arange(0, _TOKENS)
        tokens = tl.load(token_ids + places, mask=places < biased, other=0)
        tl.store(own + tokens, float("-inf"), mask=places < biased)
    tl.debug_barrier()
    biases = token_ids + _line(table, num_changed, BIASES, index) - biased
    for start in range(biased, prompt, _TOKENS):
        places = start + tl.arange(0, _TOKENS)
        is_biased = places < prompt
        tokens = tl.load(token_ids + places, mask=is_biased, other=0)
        added = tl.load(biases + places, mask=is_biased, other=0).to(tl.float32, bitcast=True)
        tl.store(own + tokens, tl.load(own + tokens, mask=is_biased, other=0.0) + added, mask=is_biased)
    if prompt < end:
        tl.debug_barrier()
        own_counts = counts + _line(table, num_changed, COUNTS, index) * vocab_size
        for start in range(prompt, end, _TOKENS):
            places = start + tl.arange(0, _TOKENS)
            tokens = tl.load(token_ids + places, mask=places < end, other=0)
            in_prompt = places < output
            tl.atomic_or(own_counts + tokens, IN_PROMPT, mask=in_prompt, sem="relaxed")
            tl.atomic_add(own_counts + tokens, 1, mask=(places < end) & (places >= output), sem="relaxed")
        tl.debug_barrier()
        repetition = _number(table, num_changed, REPETITION, index)
        frequency = _number(table, num_changed, FREQUENCY, index)
        presence = _number(table, num_changed, PRESENCE, index)
        _penalise(own, own_counts, token_ids, prompt, end, repetition, frequency, presence)
