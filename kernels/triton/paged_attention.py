"""Launches of attention over the paged cache: decode rows and chunks of prompts, in one step or apart.

Two kernels see every step that may have both: each leaves at once where a sequence is the other's. What a launch is,
shapes alone say; lengths are read on the device.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.cache_layout import LayerCache
from paged_backend.kernels.checks import group_part
from paged_backend.kernels.interface import StepInputs
from paged_backend.kernels.tensors import describe
from paged_backend.kernels.triton.attention_config import (
    AttentionConfig,
    attention_config,
    device_capability,
    padded_head_size,
    served_cache_dtypes,
)
from paged_backend.kernels.triton.context_splits import num_splits
from paged_backend.kernels.triton.decode_attention import (
    DECODE_HEADS,
    MERGE_UNROLLED,
    MERGE_WARPS,
    SPLIT_UNIT,
    decode_splits_kernel,
    merge_splits_kernel,
)
from paged_backend.kernels.triton.prefill_attention import prefill_kernel

_DECODE_PROGRAMS = 4096
"""Decode programs that a launch aims at; results do not depend on it."""

_NO_WINDOW = 2**30
_LOG2_E = math.log2(math.e)


def paged_attention(
    query: Tensor,
    cache: LayerCache,
    inputs: StepInputs,
    scale: float,
    sliding_window: int,
    soft_cap: float,
    *,
    batch_invariant: bool,
) -> Tensor:
    """See `Kernels.paged_attention`. Sums in float32; weights and values are rounded to the query's dtype before they
    are multiplied.

    Args:
        query: rows of any stride that is a multiple of 16 bytes.
        batch_invariant: give a position the same bits in a decode, in a chunk of any size and in a whole prompt, at
            some of a prompt's speed. Without it, a row depends on whether its sequence has others in the step.

    Raises:
        KernelError: the kernels do not serve the cache with these queries.
    """
    num_sequences = inputs.context_lens.shape[0]
    tables = group_part("block_tables", inputs.block_tables, cache, num_sequences)
    launch = _Launch(query, cache, inputs, tables, scale, sliding_window, soft_cap, batch_invariant)
    num_rows = query.shape[0]
    most_rows = num_rows if inputs.max_query_len is None else min(inputs.max_query_len, num_rows)
    if num_rows == 0 or num_sequences == 0:
        return launch.out
    if num_sequences > 1 or num_rows == 1:
        launch.decode()
    if most_rows > 1:
        launch.prefill()
    return launch.out


class _Launch:
    """What the kernels of one call are given."""

    def __init__(
        self,
        query: Tensor,
        cache: LayerCache,
        inputs: StepInputs,
        tables: Tensor,
        scale: float,
        sliding_window: int,
        soft_cap: float,
        batch_invariant: bool,
    ) -> None:
        if query.stride(1) != 1 or query.stride(0) * query.itemsize % 16:
            query = query.contiguous()
        _check_cache(query, cache)
        self.config: AttentionConfig = attention_config(
            query.dtype,
            cache.dtype,
            cache.head_size,
            device_capability(query.device),
            capped=soft_cap > 0,
            batch_invariant=batch_invariant,
        )
        self.num_rows, width = query.shape
        self.num_sequences = inputs.context_lens.shape[0]
        self.num_kv_heads = cache.num_kv_heads
        self.group_size = width // cache.head_size // cache.num_kv_heads
        self.batch_invariant = batch_invariant
        self.exponent_scale = _LOG2_E if soft_cap else scale * _LOG2_E
        self.num_splits = num_splits(tables.shape[1] * cache.block_size, SPLIT_UNIT)
        if sliding_window:  # the first splits are the shortest
            self.num_splits = min(self.num_splits, num_splits(sliding_window, SPLIT_UNIT) + 1)
        self.out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        keys = cache.key_numbers()
        self.common: dict[str, Any] = {
            "query": query,
            "out": self.out,
            "keys": keys,
            "values": cache.value_numbers(),
            "key_scales": cache.key_scales() if cache.has_scales else None,
            "value_scales": cache.value_scales() if cache.has_scales else None,
            "block_tables": tables,
            "query_start": inputs.query_start,
            "context_lens": inputs.context_lens,
            "query_stride": query.stride(0),
            "table_stride": tables.stride(0),
            "block_stride": keys.stride(0),
            "scales_stride": cache.key_scales().stride(0) if cache.has_scales else 0,
            "group_size": self.group_size,
            "num_kv_heads": self.num_kv_heads,
            "score_scale": 2 * _LOG2_E * scale / soft_cap if soft_cap else 0.0,
            "exponent_scale": self.exponent_scale,
            "sliding_window": sliding_window or _NO_WINDOW,
            "soft_cap": soft_cap,
            "WINDOWED": sliding_window > 0,
            "CAPPED": soft_cap > 0,
            "BLOCK_SIZE": cache.block_size,
            "HEAD_SIZE": cache.head_size,
            "BLOCK_D": padded_head_size(cache.head_size),
        }

    def decode(self) -> None:
        """Rows that are their sequence's only one."""
        common, device = self.common, self.out.device
        num_tiles = self.num_kv_heads * -(-self.group_size // DECODE_HEADS)
        wanted = _DECODE_PROGRAMS // (self.num_sequences * num_tiles)
        num_programs = min(self.num_splits, max(wanted, 2))
        shape = (self.num_sequences, num_tiles, self.num_splits)
        states = torch.empty(*shape, 2, DECODE_HEADS, dtype=torch.float32, device=device)
        split_outs = torch.empty(
            *shape, min(DECODE_HEADS, self.group_size), common["BLOCK_D"], dtype=torch.float32, device=device
        )
        decode_splits_kernel[num_programs, num_tiles, self.num_sequences](
            **common,
            states=states,
            split_outs=split_outs,
            num_programs=num_programs,
            max_splits=self.num_splits,
            SPLIT_UNIT=SPLIT_UNIT,
            HEADS=DECODE_HEADS,
            BLOCK_M=self.config.decode_rows,
            BLOCK_N=self.config.decode_block_n,
            num_warps=self.config.decode_warps,
            num_stages=self.config.decode_stages,
            enable_fp_fusion=False,
            maxnreg=self.config.decode_registers,
        )
        if self.num_splits == 1:
            return
        merged = ["out", "query_start", "context_lens", "group_size", "num_kv_heads", "exponent_scale"]
        merged += ["sliding_window", "HEAD_SIZE", "BLOCK_D"]
        merge_splits_kernel[num_tiles, self.num_sequences](
            **{name: common[name] for name in merged},
            states=states,
            split_outs=split_outs,
            max_splits=self.num_splits,
            SPLIT_UNIT=SPLIT_UNIT,
            HEADS=DECODE_HEADS,
            UNROLLED=MERGE_UNROLLED,
            num_warps=MERGE_WARPS,
            enable_fp_fusion=False,
        )

    def prefill(self) -> None:
        """Rows of sequences that have several."""
        block_m = self.config.prefill_rows
        heads = min(self.group_size, block_m)
        # A sequence may begin within what would be a tile, so each may need one more.
        num_tiles = self.num_rows // (block_m // heads) + self.num_sequences
        prefill_kernel[num_tiles, self.num_kv_heads * -(-self.group_size // heads)](
            **self.common,
            num_sequences=self.num_sequences,
            SPLIT_UNIT=SPLIT_UNIT if self.batch_invariant else 0,
            HEADS=heads,
            BLOCK_M=block_m,
            BLOCK_N=self.config.prefill_block_n,
            num_warps=self.config.prefill_warps,
            num_stages=self.config.prefill_stages,
            enable_fp_fusion=False,
            maxnreg=self.config.prefill_registers,
        )


def _check_cache(query: Tensor, cache: LayerCache) -> None:
    if not cache.token_major_keys:
        raise KernelError("token_major_keys must be true: the Triton kernels read keys that lie as values do.")
    if cache.head_size > 256:
        raise KernelError(f"head_size must be at most 256 for the Triton kernels, got {cache.head_size}.")
    served = served_cache_dtypes(query.dtype, device_capability(query.device))
    if cache.dtype not in served:
        raise KernelError(
            f"dtype of the cache must be one of {', '.join(served)} for the Triton kernels on this card with "
            f"{describe(query)}, got {cache.dtype}."
        )
