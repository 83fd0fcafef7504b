"""Reference of `Kernels.write_kv`."""

from __future__ import annotations

from torch import Tensor


def write_kv(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
    """See `Kernels.write_kv`."""
    block_size = key_cache.shape[2]
    blocks = slot_mapping // block_size
    offsets = slot_mapping % block_size
    # Two index tensors with a slice between them put their dimension first: [T, Hkv, D], like the source.
    key_cache[blocks, :, offsets] = key.to(key_cache.dtype)
    value_cache[blocks, :, offsets] = value.to(value_cache.dtype)
