"""Copies of blocks, to the byte, and nothing beside them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.cpu import _cpu
from paged_backend.kernels.interface import Kernels
from tests.kernels.implementations import implementations


@implementations
@pytest.mark.parametrize("size", [64, 1024, 4160])
def test_copy_blocks(kernels: Kernels, dtype: torch.dtype, size: int) -> None:
    storage = torch.randint(256, (3, 2, 7, size), dtype=torch.uint8)
    before = storage.clone()
    # Block 1 is both a destination and a source: its old content goes to 5.
    kernels.copy_blocks(storage, torch.tensor([[0, 1], [1, 5], [0, 6]]))
    for block, source in enumerate((0, 0, 2, 3, 4, 1, 0)):
        assert torch.equal(storage[:, :, block], before[:, :, source])


@implementations
def test_two_blocks_change_places(kernels: Kernels, dtype: torch.dtype) -> None:
    storage = torch.randint(256, (2, 2, 3, 64), dtype=torch.uint8)
    before = storage.clone()
    kernels.copy_blocks(storage, torch.tensor([[0, 2], [2, 0], [1, 1]]))
    assert torch.equal(storage, before[:, :, [2, 1, 0]])


@implementations
def test_without_pairs_nothing_happens(kernels: Kernels, dtype: torch.dtype) -> None:
    storage = torch.randint(256, (1, 2, 3, 64), dtype=torch.uint8)
    before = storage.clone()
    kernels.copy_blocks(storage, torch.empty(0, 2, dtype=torch.int64))
    assert torch.equal(storage, before)


@implementations
@pytest.mark.parametrize("pairs", [[[0, 3]], [[-1, 0]], [[0, 1], [2, 1]]], ids=str)
def test_wrong_pairs_are_refused(kernels: Kernels, dtype: torch.dtype, pairs: list[list[int]]) -> None:
    storage = torch.randint(256, (1, 2, 3, 64), dtype=torch.uint8)
    before = storage.clone()
    with pytest.raises(KernelError, match="pairs"):
        kernels.copy_blocks(storage, torch.tensor(pairs))
    assert torch.equal(storage, before)


@settings(max_examples=200, deadline=None)
@given(
    storage=st.builds(
        lambda shape, dtype: torch.ones(shape, dtype=dtype),
        st.lists(st.integers(0, 70), min_size=3, max_size=5),
        st.sampled_from((torch.uint8, torch.int8)),
    ),
    pairs=st.lists(st.tuples(st.integers(-1, 4), st.integers(-1, 4)), max_size=6),
    columns=st.integers(1, 3),
)
def test_the_binding_refuses_what_it_cannot_copy(storage: Tensor, pairs: list[tuple[int, int]], columns: int) -> None:
    table = torch.tensor(pairs, dtype=torch.int64).view(-1, 2)[:, :columns].contiguous()
    try:
        _cpu.copy_blocks(_cpu.Runtime(1), storage, table)
    except (ValueError, TypeError):
        assert torch.equal(storage, torch.ones_like(storage))
