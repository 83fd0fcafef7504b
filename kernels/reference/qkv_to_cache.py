"""Reference of `Kernels.qkv_to_cache`."""

from __future__ import annotations

import torch
from torch import Tensor

from paged_backend.kernels.cache_layout import LARGEST_NUMBERS, LayerCache, smallest_head
from paged_backend.kernels.reference.rms_norm import normed


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
    """See `Kernels.qkv_to_cache`; slots are those of the cache's group. All in float32; rounded where it is stored."""
    heads = [num_heads, cache.num_kv_heads, cache.num_kv_heads]
    wide = qkv.float().view(-1, sum(heads), cache.head_size)
    query, key, value = wide.split_with_sizes(heads, dim=1)
    if query_norm is not None and key_norm is not None:
        query, key = normed(query, query_norm, norm_eps), normed(key, key_norm, norm_eps)
    if rotary is not None:
        # One head dimension of size 1, so that a token's angles serve all of its heads.
        cos, sin = (table.index_select(0, positions).unsqueeze(1) for table in rotary)
        query, key = _turned(query, cos, sin), _turned(key, cos, sin)
    _store(key, value, cache, slots)
    return query.flatten(1).to(qkv.dtype)


def _turned(wide: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    num_rotated = cos.shape[-1]
    first = wide[..., :num_rotated]
    low, high = first.chunk(2, dim=-1)
    turned = first * cos + torch.cat((-high, low), dim=-1) * sin
    return torch.cat((turned, wide[..., num_rotated:]), dim=-1)


def _store(key: Tensor, value: Tensor, cache: LayerCache, slots: Tensor) -> None:
    blocks, offsets = slots // cache.block_size, slots % cache.block_size
    keys, values = cache.key_numbers(), cache.value_numbers()
    if cache.has_scales:
        # Two index tensors with a slice between them put their dimension first: [T, Hkv], like the source.
        key, cache.key_scales()[blocks, :, offsets] = quantized_heads(key, cache.dtype)
        value, cache.value_scales()[blocks, :, offsets] = quantized_heads(value, cache.dtype)
    keys[blocks, :, :, offsets] = key.to(keys.dtype)
    values[blocks, :, offsets] = value.to(values.dtype)


def quantized_heads(heads: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    """Each head in 8 bits, by the formula of `cache_layout`.

    Args:
        heads: float32 [..., D].
        dtype: "int8" or "fp8_e4m3".

    Returns:
        (numbers, float32 [..., D], those of int8 whole already; scales, float32 [...]).
    """
    largest = heads.abs().amax(dim=-1)
    # A tensor, because a GPU multiplies with the reciprocal of a number.
    scales = largest / largest.new_tensor(LARGEST_NUMBERS[dtype])
    scales = torch.where(largest < smallest_head(dtype), 0.0, scales)
    scales = torch.where(largest.isfinite(), scales, torch.nan)
    usable = (scales > 0).unsqueeze(-1)
    numbers = torch.where(usable, heads / scales.unsqueeze(-1), 0.0)
    return numbers.round() if dtype == "int8" else numbers, scales
