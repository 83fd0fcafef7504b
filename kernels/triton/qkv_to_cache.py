"""Norms of query and key heads, their turn by position, and the cache's write, in one kernel."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import triton
import triton.language as tl
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.cache_layout import CACHE_DTYPES, LARGEST_NUMBERS, LayerCache, smallest_head
from paged_backend.kernels.triton.aot import TRITON_TYPES, AotCase

_NUMBERS = 1024
"""Of a program's heads together, so that a thread has 8 of them, 16 bytes of a 16-bit dtype."""

_WARPS = 4


@triton.jit
def normed_and_turned(
    heads,
    used,
    position,
    cos,
    sin,
    num_positions,
    norm,
    norm_eps,
    ROTATED: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Heads that begin at the pointers [HEADS], float32 [HEADS, BLOCK_D]; zeros where not used, and past HEAD_SIZE."""
    d = tl.arange(0, BLOCK_D)
    mask = used[:, None] & (d < HEAD_SIZE)[None, :]
    x = tl.load(heads[:, None] + d[None, :], mask=mask, other=0.0).to(tl.float32)
    if norm is not None:
        factor = tl.rsqrt(tl.sum(x * x, axis=1) / HEAD_SIZE + norm_eps)
        x = x * factor[:, None] * tl.load(norm + d, mask=d < HEAD_SIZE, other=0.0)[None, :]
    if ROTATED > 0:
        half: tl.constexpr = ROTATED // 2
        other = tl.where(d < half, d + half, tl.where(d < ROTATED, d - half, d))
        y = tl.load(heads[:, None] + other[None, :], mask=mask, other=0.0).to(tl.float32)
        if norm is not None:
            y = y * factor[:, None] * tl.load(norm + other, mask=d < HEAD_SIZE, other=0.0)[None, :]
        y = tl.where((d < half)[None, :], -y, y)
        inside = (position >= 0) & (position < num_positions)
        turned = d < tl.where(inside, ROTATED, 0)
        cosine = tl.load(cos + position * ROTATED + d, mask=turned, other=tl.where(inside, 1.0, float("nan")))
        sine = tl.load(sin + position * ROTATED + d, mask=turned, other=0.0)
        x = tl.fma(x, cosine[None, :], y * sine[None, :])
    return x


@triton.jit
def whole(x, magic: tl.constexpr):
    """Numbers far below 2 ** 23 * step, to the nearest multiple of step, ties to even; magic is 1.5 * 2 ** 23 * step:
    the sum's last bit is worth one step."""
    return (x + magic) - magic


@triton.jit
def rounded_to_e4m3(x):
    """Numbers up to 448 to the nearest of fp8_e4m3, ties to even; what is left to convert is exact.

    Down to 2 ** -6 those have 4 bits, of which 3 are stored; below, they are multiples of 2 ** -9.
    """
    bits = x.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    large = (size + 0x7FFFF + ((size >> 20) & 1)) & -0x100000
    small = whole(tl.abs(x), 24576.0).to(tl.int32, bitcast=True)
    rounded = tl.where(tl.abs(x) < 2.0**-6, small, large)
    return (rounded | (bits ^ size)).to(tl.float32, bitcast=True)  # the sign of a zero, too


@triton.jit
def store_heads(
    x,
    used,
    numbers,
    scales,
    slot,
    kv_heads,
    block_stride,
    scales_stride,
    BLOCK_SIZE: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    LARGEST: tl.constexpr,
    SMALLEST: tl.constexpr,
):
    """Puts a token's heads, float32 [HEADS, BLOCK_D], into the cache as `cache_layout` says."""
    d = tl.arange(0, BLOCK_D)
    block, token = slot // BLOCK_SIZE, kv_heads * BLOCK_SIZE + slot % BLOCK_SIZE
    if scales is not None:
        largest = tl.max(tl.abs(x), axis=1)
        # The largest of NaN and a number may be either.
        broken = tl.max((tl.abs(x) < float("inf")).to(tl.int32) ^ 1, axis=1) > 0
        scale = tl.where(largest < SMALLEST, 0.0, tl.div_rn(largest, tl.full(largest.shape, LARGEST, tl.float32)))
        usable = (scale > 0.0) & (broken == 0)
        divisors = tl.broadcast_to(tl.where(usable, scale, 1.0)[:, None], x.shape)
        x = tl.where(usable[:, None], tl.div_rn(x, divisors), 0.0)
        x = whole(x, 12582912.0) if numbers.dtype.element_ty == tl.int8 else rounded_to_e4m3(x)
        tl.store(scales + block * scales_stride + token, tl.where(broken, float("nan"), scale), mask=used)
    places = (block * block_stride + token * HEAD_SIZE)[:, None] + d[None, :]
    tl.store(numbers + places, x.to(numbers.dtype.element_ty), mask=used[:, None] & (d < HEAD_SIZE)[None, :])


@triton.jit(do_not_specialize=["positions", "slots", "num_slots", "num_positions"])
def qkv_to_cache_kernel(
    qkv,
    out,
    keys,
    values,
    key_scales,
    value_scales,
    positions,
    slots,
    cos,
    sin,
    query_norm,
    key_norm,
    qkv_stride,
    block_stride,
    scales_stride,
    num_heads,
    num_kv_heads,
    num_slots,
    num_positions,
    norm_eps,
    ROTATED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    LARGEST: tl.constexpr,
    SMALLEST: tl.constexpr,
):
    """HEADS query, key or value heads of a token. Grid (T, tiles of query heads, then of key heads, then of value
    heads).

    A slot below 0 stands for a token of a padded step: nothing is stored, nor is it in a slot that the cache does not
    have. A position outside the tables of angles, which only the CPU checks, gives NaN.

    Args:
        positions, slots: int64 [T].
        num_slots, num_positions: the cache's, and those of cos and sin.
        cos, sin, query_norm, key_norm: None for no turn, and for no norms.
        LARGEST, SMALLEST: the numbers of `cache_layout`'s formula, where the cache has scales.
    """
    token, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    query_tiles, kv_tiles = tl.cdiv(num_heads, HEADS), tl.cdiv(num_kv_heads, HEADS)
    position = tl.load(positions + token)
    row = qkv + token * qkv_stride
    h, d = tl.arange(0, HEADS), tl.arange(0, BLOCK_D)
    if tile < query_tiles:
        head = tile * HEADS + h
        used = head < num_heads
        x = normed_and_turned(
            row + head * HEAD_SIZE, used, position, cos, sin, num_positions, query_norm, norm_eps, ROTATED, HEAD_SIZE,
            BLOCK_D,
        )  # fmt: skip
        places = out + token * num_heads * HEAD_SIZE + (head * HEAD_SIZE)[:, None] + d[None, :]
        tl.store(places, x.to(out.dtype.element_ty), mask=used[:, None] & (d < HEAD_SIZE)[None, :])
        return
    slot = tl.load(slots + token)
    if (slot < 0) | (slot >= num_slots):
        return
    if tile < query_tiles + kv_tiles:
        head = (tile - query_tiles) * HEADS + h
        used = head < num_kv_heads
        first = row + (num_heads + head) * HEAD_SIZE
        x = normed_and_turned(
            first, used, position, cos, sin, num_positions, key_norm, norm_eps, ROTATED, HEAD_SIZE, BLOCK_D
        )
        store_heads(
            x,
            used,
            keys,
            key_scales,
            slot,
            head,
            block_stride,
            scales_stride,
            BLOCK_SIZE,
            HEAD_SIZE,
            BLOCK_D,
            LARGEST,
            SMALLEST,
        )
    else:
        head = (tile - query_tiles - kv_tiles) * HEADS + h
        used = head < num_kv_heads
        first = row + (num_heads + num_kv_heads + head) * HEAD_SIZE
        x = normed_and_turned(first, used, position, None, None, 0, None, norm_eps, 0, HEAD_SIZE, BLOCK_D)
        store_heads(
            x,
            used,
            values,
            value_scales,
            slot,
            head,
            block_stride,
            scales_stride,
            BLOCK_SIZE,
            HEAD_SIZE,
            BLOCK_D,
            LARGEST,
            SMALLEST,
        )


def qkv_to_cache(
    qkv: Tensor,
    cache: LayerCache,
    positions: Tensor,
    slots: Tensor,
    num_heads: int,
    rotary: tuple[Tensor, Tensor] | None,
    query_norm: Tensor | None,
    key_norm: Tensor | None,
    norm_eps: float,
) -> Tensor:
    """See `Kernels.qkv_to_cache`; slots are those of the cache's group. A token with a slot of -1 is not stored.

    Raises:
        KernelError: the cache's keys are turned.
    """
    if not cache.token_major_keys:
        raise KernelError("token_major_keys must be true: the Triton kernels write keys that lie as values do.")
    num_rows, head_size = qkv.shape[0], cache.head_size
    out = torch.empty(num_rows, num_heads * head_size, dtype=qkv.dtype, device=qkv.device)
    if num_rows == 0:
        return out
    if qkv.stride(1) != 1:
        qkv = qkv.contiguous()
    cos, sin = rotary if rotary is not None else (None, None)
    keys = cache.key_numbers()
    scaled = cache.has_scales
    sizes = _sizes(head_size)
    tiles = -(-num_heads // sizes["HEADS"]) + 2 * -(-cache.num_kv_heads // sizes["HEADS"])
    qkv_to_cache_kernel[num_rows, tiles](
        qkv,
        out,
        keys,
        cache.value_numbers(),
        cache.key_scales() if scaled else None,
        cache.value_scales() if scaled else None,
        positions,
        slots,
        cos,
        sin,
        query_norm,
        key_norm,
        qkv.stride(0),
        keys.stride(0),
        cache.key_scales().stride(0) if scaled else 0,
        num_heads,
        cache.num_kv_heads,
        cache.num_blocks * cache.block_size,
        0 if cos is None else cos.shape[0],
        norm_eps,
        ROTATED=cos.shape[1] if cos is not None else 0,
        BLOCK_SIZE=cache.block_size,
        **sizes,
        **_formula(cache.dtype),
        num_warps=_WARPS,
        enable_fp_fusion=False,
    )
    return out


def _sizes(head_size: int) -> dict[str, int]:
    block_d = triton.next_power_of_2(head_size)
    return {"HEAD_SIZE": head_size, "HEADS": max(1, _NUMBERS // block_d), "BLOCK_D": block_d}


def _formula(dtype: str) -> dict[str, float]:
    if dtype not in LARGEST_NUMBERS:
        return {"LARGEST": 0.0, "SMALLEST": 0.0}
    return {"LARGEST": LARGEST_NUMBERS[dtype], "SMALLEST": smallest_head(dtype)}


def aot_cases() -> Iterable[AotCase]:
    """Each kind of cache; heads that fill their tile, that do not, and the largest; with norms and a turn, and bare."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        own = str(dtype).removeprefix("torch.")
        for cache_dtype in (own, "int8", "fp8_e4m3"):
            for head_size, bare in ((128, False), (80, True), (256, False)):
                usual = (head_size, bare) == (128, False) and (dtype == torch.bfloat16 or cache_dtype == own)
                yield _aot_case(dtype, cache_dtype, head_size, bare=bare, wide=not usual)


def _aot_case(dtype: torch.dtype, cache_dtype: str, head_size: int, *, bare: bool, wide: bool) -> AotCase:
    rows, numbers = f"*{TRITON_TYPES[dtype]}", f"*{TRITON_TYPES[CACHE_DTYPES[cache_dtype]]}"
    signature = {"qkv": rows, "out": rows, "keys": numbers, "values": numbers, "positions": "*i64", "slots": "*i64"}
    signature |= {"qkv_stride": "i32:16", "block_stride": "i32:16", "scales_stride": "i32:16"}
    signature |= dict.fromkeys(("num_heads", "num_kv_heads", "num_slots", "num_positions"), "i32")
    signature["norm_eps"] = "fp32"
    optional = [] if bare else ["cos", "sin", "query_norm", "key_norm"]
    if cache_dtype in LARGEST_NUMBERS:
        optional += ["key_scales", "value_scales"]
    signature |= dict.fromkeys(optional, "*fp32")
    absent = {"cos", "sin", "query_norm", "key_norm", "key_scales", "value_scales"} - set(optional)
    sizes = {"ROTATED": 0 if bare else head_size, "BLOCK_SIZE": 16, **_sizes(head_size), **_formula(cache_dtype)}
    return AotCase(
        name=f"{TRITON_TYPES[dtype]}-{cache_dtype}-{head_size}{'-bare' if bare else ''}",
        kernel=qkv_to_cache_kernel,
        signature=signature,
        constexprs={**dict.fromkeys(absent), **sizes},
        num_warps=_WARPS,
        fp_fusion=False,
        min_capability=89 if cache_dtype == "fp8_e4m3" else 80,
        wide=wide,
    )
