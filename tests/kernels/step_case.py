"""Inputs and caches of one step, for tests of single operations."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from paged_backend.kernels.cache_layout import LayerCache, block_bytes
from paged_backend.kernels.interface import StepInputs


def make_inputs(
    rows: Sequence[int],
    contexts: Sequence[int] | None = None,
    *,
    block_size: int = 4,
    num_blocks: int | None = None,
    num_tokens: int = 100,
    logits_rows: Tensor | None = None,
    seed: int = 0,
) -> StepInputs:
    """A step of sequences with the given rows (and contexts, by default no more than the rows), blocks in random order.

    Entries of the block tables past a context are -1.
    """
    random = torch.Generator().manual_seed(seed)
    contexts = list(rows if contexts is None else contexts)
    counts = [-(-context // block_size) for context in contexts]
    order = torch.randperm(num_blocks or max(1, sum(counts)), generator=random).tolist()
    tables = torch.full((len(contexts), max(counts, default=0) + 1), -1, dtype=torch.int32)
    positions: list[int] = []
    slots: list[int] = []
    for index, (num_rows, context, count) in enumerate(zip(rows, contexts, counts, strict=True)):
        blocks, order = order[:count], order[count:]
        tables[index, :count] = torch.tensor(blocks, dtype=torch.int32)
        for position in range(context - num_rows, context):
            positions.append(position)
            slots.append(blocks[position // block_size] * block_size + position % block_size)
    return StepInputs(
        token_ids=torch.randint(num_tokens, (sum(rows),), generator=random),
        positions=torch.tensor(positions, dtype=torch.int64),
        slot_mapping=torch.tensor(slots, dtype=torch.int64),
        block_tables=tables,
        query_start=torch.tensor([0, *itertools.accumulate(rows)], dtype=torch.int32),
        context_lens=torch.tensor(contexts, dtype=torch.int32),
        logits_rows=logits_rows,
    )


def make_cache(
    dtype: str,
    num_blocks: int,
    num_kv_heads: int = 2,
    block_size: int = 4,
    head_size: int = 8,
    *,
    token_major_keys: bool = False,
) -> LayerCache:
    """A cache of random bytes, one layer of two, so that blocks of keys and values do not touch."""
    size = block_bytes(dtype, num_kv_heads, block_size, head_size)
    storage = aligned(torch.randint(256, (2, 2, num_blocks, size), dtype=torch.uint8))
    return LayerCache(
        keys=storage[1, 0],
        values=storage[1, 1],
        dtype=dtype,
        num_kv_heads=num_kv_heads,
        block_size=block_size,
        head_size=head_size,
        token_major_keys=token_major_keys,
    )


def aligned(tensor: Tensor) -> Tensor:
    """The same bytes at a multiple of 64, as the cache's storage has them."""
    buffer = torch.empty(tensor.numel() + 64, dtype=torch.uint8)
    begin = -buffer.data_ptr() % 64
    copy = buffer[begin : begin + tensor.numel()].view(tensor.shape)
    return copy.copy_(tensor)


def stored_heads(cache: LayerCache, slots: Tensor) -> tuple[Tensor, Tensor]:
    """The keys and values that a cache holds at some slots, each float64 [T, Hkv, D], written out slot by slot."""
    keys, values = [], []
    for slot in slots.tolist():
        block, offset = divmod(slot, cache.block_size)
        key, value = cache.key_numbers()[block, :, :, offset].double(), cache.value_numbers()[block, :, offset].double()
        if cache.has_scales:
            key = key * cache.key_scales()[block, :, offset].double().unsqueeze(1)
            value = value * cache.value_scales()[block, :, offset].double().unsqueeze(1)
        keys.append(key)
        values.append(value)
    return torch.stack(keys), torch.stack(values)
