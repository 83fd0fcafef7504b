"""Random arguments of the kernels, on the card."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from paged_backend.kernels.cache_layout import LayerCache, block_bytes
from paged_backend.kernels.interface import StepInputs
from paged_backend.kernels.reference.qkv_to_cache import quantized_heads


@dataclass(frozen=True)
class Heads:
    """Sizes of an attention layer."""

    num_heads: int
    num_kv_heads: int
    head_size: int
    block_size: int = 16


def make_inputs(rows: Sequence[int], contexts: Sequence[int], block_size: int, device: torch.device) -> StepInputs:
    """A step of sequences with that many new tokens and tokens in all; the blocks lie in random order."""
    counts = [-(-context // block_size) for context in contexts]
    blocks = torch.randperm(sum(counts)).int()
    tables = torch.zeros(len(rows), max(counts), dtype=torch.int32)
    slots = []
    for index, part in enumerate(blocks.split(counts)):
        tables[index, : counts[index]] = part
        place = torch.arange(contexts[index] - rows[index], contexts[index])
        slots.append(part[place // block_size].long() * block_size + place % block_size)
    positions = [torch.arange(end - count, end) for count, end in zip(rows, contexts, strict=True)]
    return StepInputs(
        token_ids=torch.zeros(sum(rows), dtype=torch.int64, device=device),
        positions=torch.cat(positions).to(device),
        slot_mapping=torch.cat(slots).to(device),
        block_tables=tables.to(device),
        query_start=torch.tensor([0, *itertools.accumulate(rows)], dtype=torch.int32, device=device),
        context_lens=torch.tensor(list(contexts), dtype=torch.int32, device=device),
        logits_rows=None,
        max_query_len=max(rows),
    )


def make_cache(heads: Heads, dtype: str, num_blocks: int, device: torch.device) -> LayerCache:
    """A cache full of normal numbers."""
    size = block_bytes(dtype, heads.num_kv_heads, heads.block_size, heads.head_size)
    storage = torch.zeros(2 * num_blocks * size + 64, dtype=torch.uint8, device=device)
    storage = storage[-storage.data_ptr() % 64 :][: 2 * num_blocks * size].view(2, num_blocks, size)
    cache = LayerCache(
        keys=storage[0],
        values=storage[1],
        dtype=dtype,
        num_kv_heads=heads.num_kv_heads,
        block_size=heads.block_size,
        head_size=heads.head_size,
        token_major_keys=True,
    )
    shape = (num_blocks, heads.num_kv_heads, heads.block_size, heads.head_size)
    for numbers in (cache.key_numbers().mT, cache.value_numbers()):
        drawn = torch.randn(shape, device=device)
        if cache.has_scales:
            drawn, scales = quantized_heads(drawn, dtype)
            (cache.value_scales() if numbers.data_ptr() == cache.values.data_ptr() else cache.key_scales()).copy_(
                scales
            )
        numbers.copy_(drawn.to(numbers.dtype))
    return cache


def stored_heads(cache: LayerCache, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values that a cache holds at some slots, each float64 [slots, Hkv, D]."""
    block, offset = slots // cache.block_size, slots % cache.block_size
    # float8 cannot be indexed on every device.
    keys, values = (numbers.float()[block, :, offset] for numbers in (cache.key_numbers().mT, cache.value_numbers()))
    keys, values = keys.double(), values.double()
    if cache.has_scales:
        keys = keys * cache.key_scales()[block, :, offset].double().unsqueeze(-1)
        values = values * cache.value_scales()[block, :, offset].double().unsqueeze(-1)
    return keys, values


@dataclass(frozen=True)
class AttentionCase:
    """Arguments of `Kernels.paged_attention`."""

    query: Tensor
    cache: LayerCache
    inputs: StepInputs
    options: dict[str, Any]

    @classmethod
    def make(
        cls,
        heads: Heads,
        rows: Sequence[int],
        contexts: Sequence[int],
        dtype: torch.dtype,
        cache_dtype: str,
        device: torch.device,
        **options: Any,
    ) -> AttentionCase:
        """Random ones; options are the operation's."""
        inputs = make_inputs(rows, contexts, heads.block_size, device)
        num_blocks = sum(-(-context // heads.block_size) for context in contexts)
        query = torch.randn(sum(rows), heads.num_heads * heads.head_size, device=device).to(dtype)
        cache = make_cache(heads, cache_dtype, num_blocks, device)
        return cls(query, cache, inputs, {"scale": heads.head_size**-0.5, **options})

    def run(self, kernels: Any) -> Tensor:
        """The result [T, Hq * D]."""
        out = kernels.paged_attention(self.query, self.cache, self.inputs, **self.options)
        assert isinstance(out, Tensor)
        return out

    def alone(self, index: int) -> tuple[AttentionCase, slice]:
        """One sequence by itself, and which rows of the whole are its own."""
        begin, end = self.inputs.query_start[index : index + 2].tolist()
        context = int(self.inputs.context_lens[index])
        width = -(-context // self.cache.block_size)
        inputs = replace(
            self.inputs,
            token_ids=self.inputs.token_ids[begin:end],
            positions=self.inputs.positions[begin:end],
            slot_mapping=self.inputs.slot_mapping[begin:end],
            block_tables=self.inputs.block_tables[index : index + 1, :width].contiguous(),
            query_start=torch.tensor([0, end - begin], dtype=torch.int32, device=self.query.device),
            context_lens=self.inputs.context_lens[index : index + 1],
            max_query_len=end - begin,
        )
        return replace(self, query=self.query[begin:end], inputs=inputs), slice(begin, end)
