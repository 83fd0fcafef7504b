"""Writes and copies in the paged cache, to the bit, and nothing beside them."""

from __future__ import annotations

import pytest
import torch

from paged_backend.errors import KernelError
from paged_backend.kernels.registry import select_kernels
from tests.kernels.rounding import FLOAT_DTYPES

KERNELS = select_kernels("reference")


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("cache_dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_write_kv(dtype: torch.dtype, cache_dtype: torch.dtype, block_size: int) -> None:
    num_blocks, num_heads, head_size = 6, 3, 8
    cache = torch.randn(num_blocks, 2, num_heads, block_size, head_size).to(cache_dtype)
    key_cache, value_cache = cache[:, 0], cache[:, 1]
    expected = cache.clone()
    slots = torch.randperm(num_blocks * block_size)[:5]
    key, value = torch.randn(2, 5, num_heads, head_size).to(dtype).unbind(0)
    for row, slot in enumerate(slots.tolist()):
        expected[slot // block_size, 0, :, slot % block_size] = key[row].to(cache_dtype)
        expected[slot // block_size, 1, :, slot % block_size] = value[row].to(cache_dtype)
    KERNELS.write_kv(key, value, key_cache, value_cache, slots)
    assert torch.equal(cache, expected)


@pytest.mark.parametrize("slot", [-1, 64])
def test_write_kv_refuses_slots_outside_the_cache(slot: int) -> None:
    cache = torch.zeros(4, 2, 16, 8)
    row = torch.ones(2, 2, 8)
    with pytest.raises(KernelError, match="slot_mapping"):
        KERNELS.write_kv(row, row, cache, cache.clone(), torch.tensor([0, slot]))
    assert not cache.any()


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_copy_blocks(dtype: torch.dtype) -> None:
    cache = torch.randn(3, 2, 7, 2, 4, 8).to(dtype)
    before = cache.clone()
    # Block 1 is both a destination and a source: its old content goes to 5.
    KERNELS.copy_blocks(cache, torch.tensor([[0, 1], [1, 5], [0, 6]]))
    for block, source in enumerate((0, 0, 2, 3, 4, 1, 0)):
        assert torch.equal(cache[:, :, block], before[:, :, source])


def test_copy_blocks_without_pairs_does_nothing() -> None:
    cache = torch.randn(1, 2, 3, 1, 4, 8)
    before = cache.clone()
    KERNELS.copy_blocks(cache, torch.empty(0, 2, dtype=torch.int64))
    assert torch.equal(cache, before)


@pytest.mark.parametrize("pair", [[0, 3], [-1, 0]])
def test_copy_blocks_refuses_blocks_outside_the_cache(pair: list[int]) -> None:
    with pytest.raises(KernelError, match="pairs"):
        KERNELS.copy_blocks(torch.zeros(1, 2, 3, 1, 4, 8), torch.tensor([pair]))
