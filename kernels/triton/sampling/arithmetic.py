"""What sampling's kernels share: random numbers, weights as whole numbers, floats in the order of their size, rows.

A weight is exp((logit - peak) / temperature), as a whole number of UNITS to the peak's: sums of whole numbers are the
same in any order, so nothing here depends on how a sum is split or which thread comes first. What weighs less than one
unit, 1e-13 of the peak, weighs nothing; the weights of 2 ** 19 tokens fit into an int64.
"""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK = tl.constexpr(2048)
"""Tokens that are summed up by themselves, from token 0 on: the same for every batch and every vocabulary."""
GROUP = tl.constexpr(128)
"""Tokens whose largest logit is known: those of a block are looked at, or passed over, together."""

LOG2_UNITS = tl.constexpr(43)
UNITS = tl.constexpr(2.0**43)

TEMPERATURE, TOP_P, MIN_P = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
TOP_K, POSITION, ROW, CHANGED = tl.constexpr(3), tl.constexpr(4), tl.constexpr(5), tl.constexpr(6)
COUNTED = tl.constexpr(7)
"""Lines of the table of jobs (tables.py)."""
JOB, SEED, PLACE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""Lines of the table of draws."""

_MULTIPLIER = tl.constexpr(0xD2B74407B1CE6E93)
_KEY_STEP = tl.constexpr(0x9E3779B97F4A7C15)
_ROUNDS = tl.constexpr(10)
_LOG2_OF_E = tl.constexpr(1.4426950408889634)
_SIGN_OFF = tl.constexpr(0x7FFFFFFF)


@triton.jit
def random_word(seed, position):
    """The word that `random_bits.uniform` makes its number of: uint64, the lowest 11 bits cleared.

    Args:
        seed, position: int64, the seed's bits.
    """
    key = seed.to(tl.uint64, bitcast=True)
    low = position.to(tl.uint64, bitcast=True)
    high = key ^ key
    multiplier = high + _MULTIPLIER
    step = high + _KEY_STEP
    for _ in tl.static_range(_ROUNDS):
        upper = tl.umulhi(low, multiplier)
        high, low = low * multiplier, upper ^ key ^ high
        key += step
    return (low >> 11) << 11


@triton.jit
def share_of(word, total):
    """uniform * total, rounded down and always below total: int64.

    Args:
        word: of `random_word`.
        total: int64, above 0.
    """
    return tl.umulhi(word, total.to(tl.uint64, bitcast=True)).to(tl.int64, bitcast=True)


@triton.jit
def number_in(table, num_columns, line, column):
    """A float64 of a table of int64 words."""
    return tl.load(table + line * num_columns + column).to(tl.float64, bitcast=True)


@triton.jit
def word_in(table, num_columns, line, column):
    """An int64 of a table."""
    return tl.load(table + line * num_columns + column)


@triton.jit
def row_of(logits, row_stride, changed, vocab_size, jobs, num_jobs, job):
    """Where a job's logits begin: the model's, or the changed copy of them."""
    row = logits + word_in(jobs, num_jobs, ROW, job) * row_stride
    copy = word_in(jobs, num_jobs, CHANGED, job)
    if copy >= 0:
        row = changed + copy * vocab_size
    return row


@triton.jit
def exponent_scale(temperature):
    """What half a difference of logits is multiplied with, to be an exponent of 2. Bounded, so that 0 stays 0."""
    return tl.minimum(2.0 * _LOG2_OF_E / temperature, 1e38).to(tl.float32)


@triton.jit
def weights(values, peak, scale):
    """float32: 2 ** ((value - peak) / 2 * scale), and 0 for -inf and for what is no number."""
    # Halves: the difference of any two floats is then a float.
    return tl.where(values > float("-inf"), tl.exp2((values * 0.5 - peak * 0.5) * scale), 0.0)


@triton.jit
def units_of(values, peak, scale):
    """int64: the weights in units."""
    return (weights(values, peak, scale) * UNITS).to(tl.int64)


@triton.jit
def row_units(block_peaks, block_units, peak, scale):
    """int64: each block's units, counted by the row's peak instead of its own."""
    return (block_units.to(tl.float64) * weights(block_peaks, peak, scale).to(tl.float64)).to(tl.int64)


@triton.jit
def rank_of(number):
    """int64: larger for larger floats, by 1 for the next one. Not for NaN; -0.0 comes just before 0.0."""
    bits = number.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & _SIGN_OFF)).to(tl.int64)


@triton.jit
def float_of(rank):
    """The float of a rank."""
    bits = rank.to(tl.int32)
    return (bits ^ ((bits >> 31) & _SIGN_OFF)).to(tl.float32, bitcast=True)
