"""What the attention kernels are launched with: tables, by the card's generation, the queries' dtype and the head size.

Nothing here depends on a step. Of batch-invariant decode and prefill the tile of keys is one: it is what a row's bits
depend on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType

import torch
import triton

from paged_backend.kernels.cache_layout import CACHE_DTYPES, LARGEST_NUMBERS

HOPPER = 90
"""Compute capability, as 10 * major + minor, from which a matrix product is that of four warps together (wgmma)."""

SMALL_BLACKWELL = 120
"""Compute capability from which that is so no more: GeForce and RTX cards, with Ampere's instructions and 99 KiB of
shared memory."""

FP8 = 89
"""Compute capability from which fp8 is converted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionConfig:
    """Sizes of programs.

    Attributes:
        decode_block_n, prefill_block_n: keys in a tile.
        decode_rows: rows of a decode's tile, where 16 or fewer are used.
        decode_warps, decode_stages: of a decode program.
        prefill_rows: query heads times positions of a prefill's tile.
        prefill_warps, prefill_stages: of a prefill program.
        decode_registers, prefill_registers: that a thread may have; None for what the assembler likes: so many that
            three programs of 4 warps fit side by side (168) where it can, even if it has to spill some. With 128, two
            of 8 warps fit: while one waits for products, the other computes weights.
    """

    decode_block_n: int
    prefill_block_n: int
    decode_rows: int = 16
    decode_warps: int = 4
    decode_stages: int = 3
    prefill_rows: int
    prefill_warps: int = 8
    prefill_stages: int = 3
    decode_registers: int | None = 255
    prefill_registers: int = 255


# By the padded head size. Three stages: two tiles of keys are on their way.
_AMPERE: Mapping[int, AttentionConfig] = MappingProxyType(
    {
        64: AttentionConfig(decode_block_n=64, prefill_block_n=64, prefill_rows=128, decode_registers=None),
        128: AttentionConfig(decode_block_n=32, prefill_block_n=32, prefill_rows=64, decode_registers=None),
        256: AttentionConfig(decode_block_n=32, prefill_block_n=32, prefill_rows=32),
    }
)
# What becomes of 8 bits takes registers.
_AMPERE_8_BITS: Mapping[int, AttentionConfig] = MappingProxyType(
    {
        64: AttentionConfig(decode_block_n=32, prefill_block_n=32, prefill_rows=64),
        128: AttentionConfig(decode_block_n=32, prefill_block_n=32, prefill_rows=32),
        256: AttentionConfig(decode_block_n=32, prefill_block_n=32, prefill_rows=32),
    }
)
_HOPPER: Mapping[int, AttentionConfig] = MappingProxyType(
    {
        64: AttentionConfig(
            decode_block_n=64, prefill_block_n=64, prefill_rows=128, decode_registers=None, prefill_registers=128
        ),
        128: AttentionConfig(decode_block_n=64, prefill_block_n=64, prefill_rows=128, decode_registers=None),
        256: AttentionConfig(decode_block_n=32, prefill_block_n=32, prefill_rows=128, prefill_stages=2),
    }
)
_HOPPER_TIGHT = replace(_HOPPER[128], prefill_block_n=32, prefill_registers=128)
"""For heads of 128 where nothing else takes registers: two programs instead of one."""
# float32 has no matrix unit, and what it multiplies is held in registers.
_FLOAT32: Mapping[int, AttentionConfig] = MappingProxyType(
    {
        64: AttentionConfig(decode_block_n=16, prefill_block_n=16, decode_warps=8, prefill_rows=32),
        128: AttentionConfig(decode_block_n=16, prefill_block_n=16, decode_warps=8, prefill_rows=32),
        256: AttentionConfig(decode_block_n=16, prefill_block_n=16, decode_warps=8, prefill_rows=16),
    }
)


def padded_head_size(head_size: int) -> int:
    """Columns of the tiles of a head size of at most 256."""
    size: int = triton.next_power_of_2(head_size)
    return max(size, 16)


def attention_config(
    dtype: torch.dtype, cache_dtype: str, head_size: int, capability: int, *, capped: bool, batch_invariant: bool
) -> AttentionConfig:
    """The configuration of a head size of at most 256.

    Args:
        dtype: of the queries.
        cache_dtype: a key of `CACHE_DTYPES`.
        capability: of the card, as 10 * major + minor.
        capped: whether scores get a soft cap.
        batch_invariant: see `paged_attention`.
    """
    size = max(padded_head_size(head_size), 64)
    in_8_bits = cache_dtype in LARGEST_NUMBERS
    if dtype == torch.float32:
        config = _FLOAT32[size]
        # Numbers that are on their way into float32, and more of them coming, are too many for registers.
        return config if cache_dtype == "float32" else replace(config, decode_stages=1, prefill_stages=1)
    if not HOPPER <= capability < SMALL_BLACKWELL:
        return (_AMPERE_8_BITS if in_8_bits else _AMPERE)[size]
    config = _HOPPER[size]
    if in_8_bits:  # half the bytes in a tile of keys, so one tile more
        config = replace(config, decode_registers=255, decode_stages=4, prefill_registers=255)
    elif batch_invariant:
        config = replace(config, decode_registers=255, prefill_registers=255)
    elif head_size == 128 and not capped:
        config = _HOPPER_TIGHT
    if not batch_invariant:
        return config
    # Both must multiply by the same instruction. A prefill's is wgmma, which wants 64 rows: so does a decode's, then;
    # but where that spills, both have mma, as on older cards.
    if in_8_bits and size > 64:
        return replace(config, prefill_rows=32)
    if size < 256:
        return replace(config, decode_rows=64)
    config = replace(config, decode_rows=64, decode_warps=8, prefill_rows=64)
    return replace(config, decode_block_n=16, prefill_block_n=16) if capped else config


def served_cache_dtypes(dtype: torch.dtype, capability: int) -> tuple[str, ...]:
    """What a cache may be held in, beside queries of a dtype: the same first; any, for float32."""
    own = str(dtype).removeprefix("torch.")
    others = [name for name in CACHE_DTYPES if name != own and (dtype == torch.float32 or name in LARGEST_NUMBERS)]
    return (own, *(name for name in others if name != "fp8_e4m3" or capability >= FP8))


@lru_cache
def device_capability(device: torch.device) -> int:
    """Of a CUDA device, as 10 * major + minor. The interpreter's CPU counts as a Hopper card."""
    if device.type != "cuda":
        return HOPPER
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
