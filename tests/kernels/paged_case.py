"""Random cases of paged attention, and their results in float64."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from paged_backend.kernels.cache_layout import LayerCache, block_bytes
from paged_backend.kernels.interface import StepInputs
from paged_backend.kernels.reference.qkv_to_cache import quantized_heads
from tests.kernels.rounding import unit

CACHE_DTYPES = ("float32", "bfloat16", "float16", "int8")
"""What every implementation serves."""


@dataclass
class PagedCase:
    """Arguments of `Kernels.paged_attention`, and the keys and values, float64 [Hkv, context, D], that the cache
    holds for each sequence."""

    query: Tensor
    cache: LayerCache
    inputs: StepInputs
    scale: float
    sliding_window: int
    soft_cap: float
    keys: list[Tensor]
    values: list[Tensor]

    def run(self, kernels: Any) -> Tensor:
        """The result [T, Hq * D] of anything with a method `paged_attention` like `Kernels.paged_attention`."""
        result = kernels.paged_attention(
            self.query,
            self.cache,
            self.inputs,
            scale=self.scale,
            sliding_window=self.sliding_window,
            soft_cap=self.soft_cap,
        )
        assert isinstance(result, Tensor)
        return result

    def rows_of(self, out: Tensor, index: int) -> Tensor:
        """A sequence's rows of a result."""
        return out[self.inputs.query_start[index] : self.inputs.query_start[index + 1]]

    def part(self, index: int, first_row: int, num_rows: int) -> PagedCase:
        """Some rows of one sequence, as a step would compute them that ends with the last of them."""
        begin = int(self.inputs.query_start[index])
        end = int(self.inputs.query_start[index + 1])
        context_len = int(self.inputs.context_lens[index]) - (end - begin - first_row - num_rows)
        return replace(
            self,
            query=self.query[begin + first_row : begin + first_row + num_rows],
            inputs=make_tables([num_rows], [context_len], self.inputs.block_tables[index : index + 1].clone()),
            keys=[self.keys[index][:, :context_len]],
            values=[self.values[index][:, :context_len]],
        )

    def exact(self) -> tuple[Tensor, Tensor]:
        """The result in float64, and a bound of the error of a float32 computation of each number."""
        outs, bounds = [torch.empty(0, self.query.shape[1])], [torch.empty(0, self.query.shape[1])]
        for index, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            rows = self.rows_of(self.query, index).double().unflatten(1, (-1, self.cache.head_size))
            if rows.shape[0] == 0:
                continue
            out, bound = self._exact_sequence(rows, keys, values)
            outs.append(out.flatten(1))
            bounds.append(bound.flatten(1))
        return torch.cat(outs), torch.cat(bounds)

    def _exact_sequence(self, rows: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        num_rows, num_heads, head_size = rows.shape
        context_len = keys.shape[1]
        group = num_heads // keys.shape[0]
        keys, values = keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
        scores = torch.einsum("rhd,hcd->hrc", rows, keys) * self.scale
        # A sum of D products has a relative error of D roundings against the sum of magnitudes, at most; the factors
        # (of the scale, the query times it, and an int8 key's) add 4.
        magnitude = torch.einsum("rhd,hcd->hrc", rows.abs(), keys.abs()) * self.scale
        score_error = magnitude * (head_size + 4) * unit(torch.float32)
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
        # A score that is off by e changes its weight by a factor of 1 + e, and the sum of weights as well; exp, the two
        # sums over the context and the putting together of its parts add roundings.
        worst_score = score_error.masked_fill(~seen, 0).amax(-1)
        roundings = 2 * context_len + 32 + 4 * scores.masked_fill(~seen, 0).abs().amax(-1)
        factor = 2 * worst_score + roundings * unit(torch.float32)
        bound = torch.einsum("hrc,hcd->rhd", weights, values.abs()) * factor.transpose(0, 1).unsqueeze(-1)
        return out, bound


def make_tables(rows: list[int], contexts: list[int], block_tables: Tensor) -> StepInputs:
    """Inputs of a step of which attention reads the tables alone."""
    num_rows = sum(rows)
    return StepInputs(
        token_ids=torch.zeros(num_rows, dtype=torch.int64),
        positions=torch.zeros(num_rows, dtype=torch.int64),
        slot_mapping=torch.arange(num_rows),
        block_tables=block_tables,
        query_start=torch.tensor([0, *itertools.accumulate(rows)], dtype=torch.int32),
        context_lens=torch.tensor(contexts, dtype=torch.int32),
        logits_rows=None,
    )


def make_case(
    rows: list[int],
    contexts: list[int],
    *,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_size: int = 32,
    block_size: int = 16,
    cache_dtype: str = "float32",
    token_major_keys: bool = False,
    sliding_window: int = 0,
    soft_cap: float = 0.0,
    seed: int = 0,
) -> PagedCase:
    """A case whose blocks lie in random order, in a cache that is not-a-number wherever no token is."""
    random = torch.Generator().manual_seed(seed)
    counts = [-(-context // block_size) for context in contexts]
    num_blocks = sum(counts) + 2
    size = block_bytes(cache_dtype, num_kv_heads, block_size, head_size)
    # All bits set: not-a-number in every float format.
    storage = torch.full((num_blocks * 2 * size + 64,), 255, dtype=torch.uint8)
    storage = storage[-storage.data_ptr() % 64 :][: num_blocks * 2 * size].view(num_blocks, 2, size)
    cache = LayerCache(
        keys=storage[:, 0],
        values=storage[:, 1],
        dtype=cache_dtype,
        num_kv_heads=num_kv_heads,
        block_size=block_size,
        head_size=head_size,
        token_major_keys=token_major_keys,
    )
    # Of a generator of its own: the numbers are to be the same with any block size.
    order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(seed)).tolist()
    tables = torch.full((len(rows), max(counts, default=0) + 1), -1, dtype=torch.int32)
    keys, values = [], []
    for index, (context, count) in enumerate(zip(contexts, counts, strict=True)):
        blocks, order = torch.tensor(order[:count], dtype=torch.int64), order[count:]
        tables[index, :count] = blocks
        place = torch.arange(context)
        slots = blocks[place // block_size], place % block_size
        for stored, numbers in ((keys, cache.key_numbers().transpose(2, 3)), (values, cache.value_numbers())):
            heads = torch.randn(context, num_kv_heads, head_size, generator=random)
            if cache.has_scales:
                heads, scales = quantized_heads(heads, cache_dtype)
                views = cache.key_scales() if stored is keys else cache.value_scales()
                views[slots[0], :, slots[1]] = scales
                kept = heads.to(numbers.dtype).double() * scales.double().unsqueeze(-1)
            else:
                kept = heads.to(numbers.dtype).double()
            numbers[slots[0], :, slots[1]] = heads.to(numbers.dtype)
            stored.append(kept.transpose(0, 1))
    return PagedCase(
        query=torch.randn(sum(rows), num_heads * head_size, generator=random),
        cache=cache,
        inputs=make_tables(rows, contexts, tables),
        scale=head_size**-0.5,
        sliding_window=sliding_window,
        soft_cap=soft_cap,
        keys=keys,
        values=values,
    )
