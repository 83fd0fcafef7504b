"""Paged attention in C++ (`csrc/paged_attention.h`), under the signature of `Kernels.paged_attention`."""

from __future__ import annotations

import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.cpu import _cpu


class PagedAttention:
    """The operation, with threads of its own. A row's bits do not depend on the rows beside it, nor on the
    threads.

    Attributes:
        num_threads: the caller's thread and its helpers.
        instruction_set: what it runs with: "avx512", "avx2" or "portable".
    """

    def __init__(self, num_threads: int, instruction_set: str = "auto") -> None:
        try:
            self._operation = _cpu.PagedAttention(num_threads, instruction_set)
        except ValueError as error:
            raise KernelError(str(error)) from None
        self.num_threads: int = self._operation.num_threads
        self.instruction_set: str = self._operation.instruction_set

    def __call__(
        self,
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
        """See `Kernels.paged_attention`. Head sizes up to 256."""
        out = torch.empty(query.shape, dtype=query.dtype)
        try:
            self._operation.run(
                query,
                key_cache,
                value_cache,
                block_tables,
                query_start,
                context_lens,
                out,
                scale,
                sliding_window,
                soft_cap,
            )
        except ValueError as error:
            raise KernelError(str(error)) from None
        return out
