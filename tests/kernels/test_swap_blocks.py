"""Blocks on their way to host memory and back: to the byte, and nothing beside them."""

from __future__ import annotations

import pytest
import torch

from paged_backend.errors import KernelError
from paged_backend.kernels.interface import Kernels
from tests.kernels.implementations import implementations


@implementations
def test_out_and_in(kernels: Kernels, dtype: torch.dtype) -> None:
    storage = torch.randint(256, (3, 2, 7, 320), dtype=torch.uint8)
    slots = torch.randint(256, (4, 3, 2, 320), dtype=torch.uint8)
    pool, host = storage.clone(), slots.clone()
    kernels.swap_blocks(storage, slots, torch.tensor([[6, 0], [2, 3]]), inwards=False)
    host[0], host[3] = pool[:, :, 6], pool[:, :, 2]
    assert torch.equal(storage, pool) and torch.equal(slots, host)
    kernels.swap_blocks(storage, slots, torch.tensor([[1, 3], [0, 1]]), inwards=True)
    pool[:, :, 1], pool[:, :, 0] = host[3], host[1]
    assert torch.equal(storage, pool) and torch.equal(slots, host)
    kernels.swap_blocks(storage, slots, torch.empty(0, 2, dtype=torch.int64), inwards=True)
    assert torch.equal(storage, pool)


@implementations
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"storage": torch.zeros(2, 2, 64, dtype=torch.uint8)}, "storage must be contiguous uint8"),
        ({"slots": torch.zeros(2, 2, 2, 128, dtype=torch.uint8)}, r"slots must be contiguous uint8 \[S, 2, 2, 64\]"),
        ({"slots": torch.zeros(2, 2, 64, 2, dtype=torch.uint8).mT}, "slots must be contiguous"),
        ({"slots": torch.zeros(2, 2, 2, 64)}, "slots must be contiguous uint8"),
        ({"pairs": torch.zeros(2, 3, dtype=torch.int64)}, "pairs must be int64"),
        ({"pairs": torch.tensor([[3, 0]])}, r"pairs must be in 0\.\.2"),
        ({"pairs": torch.tensor([[0, 2]])}, r"pairs must be in 0\.\.1"),
        ({"pairs": torch.tensor([[0, 1], [2, 1]])}, "pairs must have different destinations"),
        ({"inwards": 1}, "inwards must be true or false"),
    ],
    ids=str,
)
def test_wrong_arguments(kernels: Kernels, dtype: torch.dtype, wrong: dict[str, object], message: str) -> None:
    right = {
        "storage": torch.zeros(2, 2, 3, 64, dtype=torch.uint8),
        "slots": torch.ones(2, 2, 2, 64, dtype=torch.uint8),
        "pairs": torch.tensor([[0, 1], [1, 0]]),
        "inwards": False,
    }
    with pytest.raises(KernelError, match=message):
        kernels.swap_blocks(**{**right, **wrong})  # type: ignore[arg-type]
    assert (right["slots"] == 1).all()  # type: ignore[attr-defined]
