"""Paged attention in C++ on a chosen instruction set, called by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.cache_layout import LayerCache
from paged_backend.kernels.cpu import _cpu
from paged_backend.kernels.interface import StepInputs


class CppAttention:
    """The part of `Kernels` that the tests of paged attention need."""

    def __init__(self, num_threads: int, instruction_set: str = "auto") -> None:
        self.runtime = _cpu.Runtime(num_threads, instruction_set)

    def paged_attention(
        self,
        query: Tensor,
        cache: LayerCache,
        inputs: StepInputs,
        *,
        scale: float,
        sliding_window: int = 0,
        soft_cap: float = 0.0,
    ) -> Tensor:
        """See `Kernels.paged_attention`."""
        out = torch.full(query.shape, torch.nan)
        try:
            _cpu.paged_attention(
                self.runtime,
                query,
                cache.keys,
                cache.values,
                cache.dtype,
                cache.num_kv_heads,
                cache.block_size,
                cache.head_size,
                inputs.block_tables,
                inputs.query_start,
                inputs.context_lens,
                out,
                scale,
                sliding_window,
                soft_cap,
            )
        except ValueError as error:
            raise KernelError(str(error)) from None
        return out
