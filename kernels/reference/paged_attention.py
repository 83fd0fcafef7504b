"""Reference of `Kernels.paged_attention`."""

from __future__ import annotations

import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.cache_layout import LayerCache
from paged_backend.kernels.checks import group_part
from paged_backend.kernels.interface import StepInputs


def paged_attention(
    query: Tensor, cache: LayerCache, inputs: StepInputs, scale: float, sliding_window: int, soft_cap: float
) -> Tensor:
    """See `Kernels.paged_attention`. Loops over sequences; each one's keys and values are gathered and
    widened."""
    starts = inputs.query_start.tolist()
    contexts = inputs.context_lens.tolist()
    if starts[0] != 0 or starts[-1] != query.shape[0]:
        raise KernelError(f"query_start must run from 0 to {query.shape[0]}, got {starts[0]} to {starts[-1]}.")
    if starts != sorted(starts):
        raise KernelError(f"query_start must not decrease, got {starts}.")
    tables = group_part("block_tables", inputs.block_tables, cache, len(contexts))
    out = torch.empty_like(query)
    for index, context_len in enumerate(contexts):
        begin, end = starts[index], starts[index + 1]
        num_rows = end - begin
        if num_rows == 0:
            continue
        if context_len < num_rows:
            raise KernelError(
                f"context_lens[{index}] must count the sequence's {num_rows} new rows, got {context_len}."
            )
        first_position = context_len - num_rows
        # Blocks that every row's window has left behind are not read.
        first_block = max(0, first_position - sliding_window + 1) // cache.block_size if sliding_window else 0
        first_key = first_block * cache.block_size
        blocks = _blocks(tables, index, first_block, context_len, cache)
        keys, values = _gather(cache, blocks, context_len - first_key)

        # [Hkv, group, rows, D], so that a key/value head serves its group of query heads by broadcasting.
        rows = query[begin:end].float().unflatten(1, (cache.num_kv_heads, -1, cache.head_size)).permute(1, 2, 0, 3)
        scores = (rows @ keys.unsqueeze(1)) * scale
        if soft_cap:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        positions = torch.arange(first_position, context_len, device=query.device).unsqueeze(1)
        key_positions = torch.arange(first_key, context_len, device=query.device)
        hidden = key_positions > positions
        if sliding_window:
            hidden |= key_positions <= positions - sliding_window
        weights = scores.masked_fill_(hidden, -torch.inf).softmax(dim=-1)
        result = weights @ values.unsqueeze(1)
        out[begin:end] = result.permute(2, 0, 1, 3).flatten(1).to(out.dtype)
    return out


def _blocks(block_tables: Tensor, index: int, first_block: int, context_len: int, cache: LayerCache) -> Tensor:
    """The blocks of one sequence that are read, int32 [n]."""
    last_block = -(-context_len // cache.block_size)
    if last_block > block_tables.shape[1]:
        raise KernelError(
            f"block_tables has {block_tables.shape[1]} blocks a sequence, context_lens[{index}] needs {last_block}."
        )
    blocks = block_tables[index, first_block:last_block]
    low, high = blocks.aminmax()
    if low < 0 or high >= cache.num_blocks:
        raise KernelError(
            f"block_tables[{index}] must hold blocks of the cache in 0..{cache.num_blocks - 1}, "
            f"got {int(low)}..{int(high)}."
        )
    return blocks


def _gather(cache: LayerCache, blocks: Tensor, num_keys: int) -> tuple[Tensor, Tensor]:
    """The first num_keys tokens of some blocks: keys, float32 [Hkv, D, num_keys], and values [Hkv, num_keys, D]."""
    keys, values = cache.key_numbers()[blocks].float(), cache.value_numbers()[blocks].float()
    if cache.has_scales:
        keys = keys * cache.key_scales()[blocks].unsqueeze(2)
        values = values * cache.value_scales()[blocks].unsqueeze(3)
    keys = keys.permute(1, 2, 0, 3).flatten(2)[..., :num_keys]
    return keys, values.transpose(0, 1).flatten(1, 2)[:, :num_keys]
