"""Reference of `Kernels.paged_attention`."""

from __future__ import annotations

import torch
from torch import Tensor

from paged_backend.errors import KernelError


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    query_start: Tensor,
    context_lens: Tensor,
    *,
    scale: float,
    sliding_window: int = 0,
    soft_cap: float = 0.0,
) -> Tensor:
    """See `Kernels.paged_attention`. Loops over sequences; each one's keys and values are gathered and
    widened."""
    num_kv_heads, block_size = key_cache.shape[1], key_cache.shape[2]
    starts = query_start.tolist()
    contexts = context_lens.tolist()
    if starts[0] != 0 or starts[-1] != query.shape[0]:
        raise KernelError(f"query_start must run from 0 to {query.shape[0]}, got {starts[0]} to {starts[-1]}.")
    if starts != sorted(starts):
        raise KernelError(f"query_start must not decrease, got {starts}.")
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
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
        first_block = max(0, first_position - sliding_window + 1) // block_size if sliding_window else 0
        last_block = (context_len + block_size - 1) // block_size
        if last_block > block_tables.shape[1]:
            raise KernelError(
                f"block_tables has {block_tables.shape[1]} blocks a sequence, context_lens[{index}] needs {last_block}."
            )
        blocks = block_tables[index, first_block:last_block]
        _check_blocks(blocks, key_cache.shape[0], index)
        first_key = first_block * block_size
        num_keys = context_len - first_key
        keys = _gather(key_cache, blocks, num_keys)
        values = _gather(value_cache, blocks, num_keys)

        # [Hkv, group, rows, D], so that a key/value head serves its group of query heads by broadcasting.
        rows = query[begin:end].float().unflatten(1, (num_kv_heads, -1)).permute(1, 2, 0, 3)
        scores = (rows @ keys.transpose(1, 2).unsqueeze(1)) * scale
        if soft_cap:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        positions = torch.arange(first_position, context_len, device=query.device).unsqueeze(1)
        key_positions = torch.arange(first_key, context_len, device=query.device)
        hidden = key_positions > positions
        if sliding_window:
            hidden |= key_positions <= positions - sliding_window
        weights = scores.masked_fill_(hidden, -torch.inf).softmax(dim=-1)
        result = weights @ values.unsqueeze(1)
        out[begin:end] = result.permute(2, 0, 1, 3).flatten(1, 2).to(out.dtype)
    return out


def _gather(cache: Tensor, blocks: Tensor, num_keys: int) -> Tensor:
    """The first num_keys tokens of some blocks, as float32 [Hkv, num_keys, D]."""
    return cache[blocks].transpose(0, 1).flatten(1, 2)[:, :num_keys].float()


def _check_blocks(blocks: Tensor, num_blocks: int, index: int) -> None:
    low, high = blocks.aminmax()
    if low < 0 or high >= num_blocks:
        raise KernelError(
            f"block_tables[{index}] must hold blocks of the cache in 0..{num_blocks - 1}, got {int(low)}..{int(high)}."
        )
