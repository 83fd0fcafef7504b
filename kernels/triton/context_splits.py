"""Where a context is cut into splits: by positions alone, whatever its length, the batch and the card are.

Sixteen splits of `unit` keys, then sixteen of twice as many, and so on: a short context has many, so that few sequences
keep a card busy, and a long one has not too many to merge (131,072 keys in units of 256: 81).
"""

from __future__ import annotations

import triton
import triton.language as tl

# Splits begin where the floats of 4 mantissa bits lie, counted in units from 16 on: the number of the split that holds
# unit u is the exponent and the mantissa of u + 16, less those of 16.
_DROPPED_BITS = tl.constexpr(23 - 4)
_FIRST = tl.constexpr((127 + 4) << 4)


@triton.jit
def split_of(position, UNIT: tl.constexpr):
    """The split that a key is in."""
    v = (position // UNIT + 16).to(tl.float32)
    return (v.to(tl.int32, bitcast=True) >> _DROPPED_BITS) - _FIRST


@triton.jit
def split_begin(split, UNIT: tl.constexpr):
    """The first key of a split, which is the end of the one before."""
    v = ((split + _FIRST) << _DROPPED_BITS).to(tl.float32, bitcast=True)
    return (v.to(tl.int32) - 16) * UNIT


def num_splits(num_tokens: int, unit: int) -> int:
    """Splits of a context, 0 for none."""
    if num_tokens < 1:
        return 0
    v = (num_tokens - 1) // unit + 16
    level = v.bit_length() - 5
    return 16 * (level - 1) + (v >> level) + 1
