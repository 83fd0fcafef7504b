"""Splits of a context lie where their positions say: shorter ones first, none empty, none left out."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from paged_backend.kernels.triton.context_splits import num_splits, split_begin, split_of


@triton.jit
def told(splits, begins, unit: tl.constexpr, count: tl.constexpr, known: tl.constexpr):
    position, split = tl.arange(0, count), tl.arange(0, known)
    tl.store(splits + position, split_of(position, unit))
    tl.store(begins + split, split_begin(split, unit))


@pytest.mark.parametrize("unit", [16, 256])
def test_splits(device: torch.device, unit: int) -> None:
    begins = [0]
    for index in range(63):
        begins.append(begins[-1] + unit * 2 ** (index // 16))
    count = 16384
    wanted = torch.searchsorted(torch.tensor(begins), torch.arange(count), right=True) - 1
    split_of_position = torch.empty(count, dtype=torch.int32, device=device)
    begin_of_split = torch.empty(64, dtype=torch.int32, device=device)
    told[(1,)](split_of_position, begin_of_split, unit, count, 64)
    assert begin_of_split.tolist() == begins
    known = min(count, begins[-1])
    assert torch.equal(split_of_position[:known].cpu(), wanted[:known].int())
    for tokens in (0, 1, unit, unit + 1, 16 * unit, 16 * unit + 1, known):
        assert num_splits(tokens, unit) == (int(wanted[tokens - 1]) + 1 if tokens else 0)


def test_longest_contexts() -> None:
    assert num_splits(4096, 256) == 16
    assert num_splits(131072, 256) == 81
    assert num_splits(2**20, 256) < 130
