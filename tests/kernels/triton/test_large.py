"""Tensors of more than 2 ** 31 numbers, as caches, weights and logits of large cards are: offsets need 64 bits.

Indices and strides fit into 32 bits here, and their products do not. The memory is files' that are almost all holes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from paged_backend.kernels.cache_layout import LayerCache
from paged_backend.kernels.sampling_batch import LogitChanges
from paged_backend.kernels.triton.blocks import copy_blocks, swap_blocks
from paged_backend.kernels.triton.experts import Stack, experts
from paged_backend.kernels.triton.finish import Unfinished
from paged_backend.kernels.triton.float8 import to_float8
from paged_backend.kernels.triton.kernels import TritonKernels
from paged_backend.kernels.triton.norms import rms_norm
from paged_backend.kernels.triton.paged_attention import paged_attention
from paged_backend.kernels.triton.qkv_to_cache import qkv_to_cache
from paged_backend.kernels.triton.rows import embedding, select_rows
from paged_backend.kernels.triton.sampling.launch import sample
from tests.kernels.experts_case import make_experts
from tests.kernels.linear_case import make_weight
from tests.kernels.paged_case import make_case
from tests.kernels.sampling_case import make_batch

FAR = 2**31 + 2**24

New = Callable[[int, torch.dtype], Tensor]


@pytest.fixture
def new(device: torch.device, tmp_path: Path) -> New:
    """Zeros, so many of a dtype."""
    if device.type != "cpu":
        pytest.skip("a GPU's memory has no holes")
    paths = (tmp_path / str(number) for number in range(100))

    def new(size: int, dtype: torch.dtype) -> Tensor:
        path = next(paths)
        with path.open("wb") as file:
            file.truncate(size * dtype.itemsize)
        memory = torch.from_file(str(path), shared=True, size=size * dtype.itemsize, dtype=torch.uint8)
        return memory.view(dtype)

    return new


def spread(new: New, tensor: Tensor) -> Tensor:
    """The same numbers, the last of them more than FAR numbers after the first, in the first dimension."""
    length, *_ = tensor.shape
    stride = -(-FAR // (length - 1) // 16) * 16
    assert stride < 2**31
    strides = (stride, *tensor.contiguous().stride()[1:])
    return new(length * stride, tensor.dtype).as_strided(tensor.shape, strides).copy_(tensor)


@pytest.mark.parametrize("cache_dtype", ["float16", "int8"])
def test_caches(new: New, cache_dtype: str) -> None:
    """Blocks at the end of one are written and read."""
    case = make_case([1, 20, 3], [40, 20, 70], num_heads=4, num_kv_heads=1, head_size=32, token_major_keys=True)
    num_blocks, size = case.cache.num_blocks, 16 * 32 + 16 * 4 if cache_dtype == "int8" else 16 * 32 * 2
    first = FAR // (size // 4)
    qkv = torch.randn(24, (4 + 2) * 32).half()
    found: list[tuple[Tensor, ...]] = []
    for begin in (0, first):
        keys, values = (new((begin + num_blocks) * size, torch.uint8).view(-1, size) for _ in range(2))
        cache = LayerCache(
            keys=keys,
            values=values,
            dtype=cache_dtype,
            num_kv_heads=1,
            block_size=16,
            head_size=32,
            token_major_keys=True,
        )
        inputs = dataclasses.replace(case.inputs, block_tables=case.inputs.block_tables + begin)
        tables, starts = inputs.block_tables.long(), inputs.query_start.tolist()
        positions = torch.cat(
            [torch.arange(length - rows, length) for rows, length in zip([1, 20, 3], [40, 20, 70], strict=True)]
        )
        owners = torch.repeat_interleave(torch.arange(3), torch.tensor(starts).diff())
        slots = tables[owners, positions // 16] * 16 + positions % 16
        query = qkv_to_cache(qkv, cache, positions, slots, 4, None, None, None, 0.0)
        outs = [paged_attention(query, cache, inputs, 0.2, 0, 0.0, batch_invariant=each) for each in (False, True)]
        found.append((keys[begin:], values[begin:], *outs))
    assert found[0][0].any() and found[0][1].any() and all(out.isfinite().all() for out in found[0][2:])
    assert all(map(torch.equal, *found))


def test_moves_of_blocks(new: New) -> None:
    """Within the last lane, and to and from slots."""
    num_blocks = FAR // 16 // 3
    storage = new(4 * num_blocks * 64, torch.uint8).view(2, 2, num_blocks, 64)
    numbers = torch.randint(256, (2, 2, 64), dtype=torch.uint8)
    storage[:, :, -1] = numbers
    copy_blocks(storage, torch.tensor([[num_blocks - 1, num_blocks - 7]]))
    assert torch.equal(storage[:, :, -7], numbers)
    num_slots = FAR // 64
    slots = new(num_slots * 4 * 64, torch.uint8).view(num_slots, 2, 2, 64)
    swap_blocks(storage, slots, torch.tensor([[num_blocks - 7, num_slots - 1]]), False)
    assert torch.equal(slots[-1], numbers)
    swap_blocks(storage, slots, torch.tensor([[num_blocks - 3, num_slots - 1]]), True)
    assert torch.equal(storage[:, :, -3], numbers)
    for blocks in (-7, -3, -1):
        storage[:, :, blocks] = 0
    assert not storage[:, :, -9:].any() and not storage[:, :, :9].any() and not slots[:9].any()


def test_rows(new: New) -> None:
    """Of activations, far from each other."""
    rows = torch.randn(40, 48).half()
    far, norm, positions = spread(new, rows), torch.randn(48), torch.arange(40)
    assert torch.equal(rms_norm(far, norm, 1e-6), rms_norm(rows, norm, 1e-6))
    assert torch.equal(select_rows(far, positions), rows)
    assert torch.equal(embedding(rows, positions, far, torch.float16), 2 * rows)
    narrow, scales = to_float8(far, 48)
    wanted, wanted_scales = to_float8(rows, 48)
    assert torch.equal(narrow.view(torch.uint8), wanted.view(torch.uint8)) and torch.equal(scales, wanted_scales)
    rotary = torch.randn(40, 16), torch.randn(40, 16)
    cache = make_case([40], [40], num_heads=1, num_kv_heads=1, head_size=16, token_major_keys=True).cache
    options: Any = (cache, positions, torch.full((40,), -1), 1, rotary, None, None, 0.0)
    assert torch.equal(qkv_to_cache(far, *options), qkv_to_cache(rows, *options))
    parts = torch.randn(2, 5, 48)
    residual = torch.randn(5, 48)
    lying = spread(new, parts.flatten(0, 1)).unflatten(0, (2, 5))
    sums = Unfinished(lying, torch.float32, residual=spread(new, residual)).rows
    assert torch.equal(sums, Unfinished(parts, torch.float32, residual=residual).rows)


def test_the_end_of_a_table(new: New) -> None:
    num_rows = FAR // 32
    table = new(num_rows * 32, torch.float16).view(num_rows, 32)
    table[-2] = 3
    assert embedding(table, torch.tensor([num_rows - 2, 0]), None, torch.float16).unique(dim=1).tolist() == [[3], [0]]


@pytest.mark.parametrize("weights", ["float32", "int8/row"])
def test_weights(new: New, device: torch.device, weights: str) -> None:
    """Of which the last rows are far from the first, as are those of x."""
    kernels = TritonKernels(device, torch.float16, batch_invariant=True)
    packed: Any = kernels.pack_linear(make_weight(weights, 40, 128))
    far = dataclasses.replace(packed, numbers=spread(new, packed.numbers))
    x = torch.randn(20, 128).half()
    assert torch.equal(kernels.linear(spread(new, x), far), kernels.linear(x, packed))


def test_experts(new: New, device: torch.device) -> None:
    kernels = TritonKernels(device, torch.float16)
    packed: Any = kernels.pack_experts(*make_experts("int8/row", 4, 64, 32))
    x, logits = torch.randn(5, 64).half(), torch.randn(5, 4).half()

    def far(stack: Stack) -> Stack:
        return dataclasses.replace(stack, numbers=spread(new, stack.numbers))

    options: Any = (2, True, "silu", None)
    wanted = experts(x, logits, packed, *options)
    spread_out = dataclasses.replace(packed, inner=far(packed.inner), outer=far(packed.outer))
    assert torch.equal(experts(spread(new, x), spread(new, logits), spread_out, *options), wanted)


def test_logits(new: New) -> None:
    logits = torch.randn(5, 2100)
    batch = make_batch(
        5,
        temperatures=[0.0, 1.0, 1.0, 1.0, 1.0],
        top_k=[0, 5, 0, 0, 0],
        top_p=[1.0, 1.0, 0.5, 1.0, 1.0],
        num_logprobs=[0, 3, 1, 2, 3],
        changes={4: LogitChanges(allowed_token_ids=[7, 2099, 12], logit_bias={2099: 1.0})},
    )
    assert sample(spread(new, logits), batch) == sample(logits, batch)
