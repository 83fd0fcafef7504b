"""Random cases of paged attention, and their results in float64."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.kernels.rounding import unit


@dataclass
class PagedCase:
    """Arguments of `Kernels.paged_attention`, and the keys and values that the cache holds for each
    sequence."""

    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    block_tables: Tensor
    query_start: Tensor
    context_lens: Tensor
    scale: float
    sliding_window: int
    soft_cap: float
    keys: list[Tensor]
    values: list[Tensor]

    def tensors(self) -> tuple[Tensor, ...]:
        return (
            self.query,
            self.key_cache,
            self.value_cache,
            self.block_tables,
            self.query_start,
            self.context_lens,
        )

    def options(self) -> dict[str, Any]:
        return {"scale": self.scale, "sliding_window": self.sliding_window, "soft_cap": self.soft_cap}

    def run(self, operation: Any) -> Tensor:
        result = operation(*self.tensors(), **self.options())
        assert isinstance(result, Tensor)
        return result

    def exact(self) -> tuple[Tensor, Tensor]:
        """The result in float64, and a bound of the error of a float32 computation of each number."""
        outs, bounds = [], []
        for index, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            rows = self.query[self.query_start[index] : self.query_start[index + 1]].double()
            if rows.shape[0] == 0:
                continue
            out, bound = self._exact_sequence(rows, keys.double(), values.double())
            outs.append(out)
            bounds.append(bound)
        return torch.cat(outs), torch.cat(bounds)

    def _exact_sequence(self, rows: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        num_rows, num_heads, head_size = rows.shape
        context_len = keys.shape[1]
        group = num_heads // keys.shape[0]
        keys, values = keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
        scores = torch.einsum("rhd,hcd->hrc", rows, keys) * self.scale
        # A sum of D products has a relative error of D + 1 roundings against the sum of magnitudes, at most.
        magnitude = torch.einsum("rhd,hcd->hrc", rows.abs(), keys.abs()) * self.scale
        score_error = magnitude * (head_size + 2) * unit(torch.float32)
        if self.soft_cap:
            scores = self.soft_cap * torch.tanh(scores / self.soft_cap)
            score_error = score_error + 8 * self.soft_cap * unit(torch.float32)
        position = torch.arange(context_len - num_rows, context_len).unsqueeze(1)
        place = torch.arange(context_len)
        seen = place <= position
        if self.sliding_window:
            seen &= place > position - self.sliding_window
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        out = torch.einsum("hrc,hcd->rhd", weights, values)
        # A score that is off by e changes its weight by a factor of 1 + e, and the sum of weights as well;
        # exp, the two sums over the context and the rescaling of each tile add roundings.
        worst_score = score_error.masked_fill(~seen, 0).amax(-1)
        roundings = 2 * context_len + 32 + 2 * scores.masked_fill(~seen, 0).abs().amax(-1)
        factor = 2 * worst_score + roundings * unit(torch.float32)
        bound = torch.einsum("hrc,hcd->rhd", weights, values.abs()) * factor.transpose(0, 1).unsqueeze(-1)
        return out, bound


def make_case(
    rows: list[int],
    contexts: list[int],
    *,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_size: int = 32,
    block_size: int = 16,
    query_dtype: torch.dtype = torch.float32,
    cache_dtype: torch.dtype = torch.float32,
    sliding_window: int = 0,
    soft_cap: float = 0.0,
    seed: int = 0,
) -> PagedCase:
    """A case whose blocks lie in random order, in a cache that is not-a-number wherever no token is."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(*shape, generator=random).to(dtype)

    keys = [normal(num_kv_heads, context, head_size, dtype=cache_dtype) for context in contexts]
    values = [normal(num_kv_heads, context, head_size, dtype=cache_dtype) for context in contexts]
    query = normal(sum(rows), num_heads, head_size, dtype=query_dtype)
    counts = [-(-context // block_size) for context in contexts]
    num_blocks = sum(counts) + 2
    order = torch.randperm(num_blocks, generator=random).to(torch.int32).tolist()
    tables = torch.full((len(rows), max(counts, default=0) + 1), -1, dtype=torch.int32)
    key_cache = torch.full((num_blocks, num_kv_heads, block_size, head_size), torch.nan).to(cache_dtype)
    value_cache = key_cache.clone()
    for index, count in enumerate(counts):
        for i in range(count):
            block = order.pop()
            tables[index, i] = block
            for cache, source in ((key_cache, keys[index]), (value_cache, values[index])):
                part = source[:, i * block_size : (i + 1) * block_size]
                cache[block, :, : part.shape[1]] = part
    return PagedCase(
        query=query,
        key_cache=key_cache,
        value_cache=value_cache,
        block_tables=tables,
        query_start=torch.tensor([0, *itertools.accumulate(rows)], dtype=torch.int32),
        context_lens=torch.tensor(contexts, dtype=torch.int32),
        scale=head_size**-0.5,
        sliding_window=sliding_window,
        soft_cap=soft_cap,
        keys=keys,
        values=values,
    )
