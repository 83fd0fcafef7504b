"""Blocks on their way within the pool, out of it and into it: to the byte, and nothing beside them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.registry import select_kernels
from paged_backend.kernels.triton.blocks import COPY_TILES, copy_blocks, gather_blocks, scatter_blocks


def random_storage(device: torch.device, num_blocks: int, size: int) -> Tensor:
    return torch.randint(256, (2, 2, num_blocks, size), dtype=torch.uint8).to(device)


@pytest.mark.parametrize(("num_blocks", "size", "num_pairs"), [(7, 64, 3), (9, 4160, 9), (90, 320, 70), (600, 64, 300)])
def test_copy_blocks(device: torch.device, num_blocks: int, size: int, num_pairs: int) -> None:
    """Chains and rings: nearly every block is both a source and a destination."""
    storage = random_storage(device, num_blocks, size)
    before = storage.clone()
    sources = torch.randint(num_blocks, (num_pairs,), device=device)
    destinations = torch.randperm(num_blocks)[:num_pairs].to(device)
    select_kernels("triton", device).copy_blocks(storage, torch.stack((sources, destinations), dim=1))
    expected = before.clone()
    expected[:, :, destinations] = before[:, :, sources]
    assert torch.equal(storage, expected)


def test_two_blocks_change_places(device: torch.device) -> None:
    storage = random_storage(device, 3, 128)
    before = storage.clone()
    copy_blocks(storage, torch.tensor([[0, 2], [2, 0], [1, 1]], device=device))
    assert torch.equal(storage, before[:, :, [2, 1, 0]])
    copy_blocks(storage, torch.empty(0, 2, dtype=torch.int64, device=device))
    assert torch.equal(storage, before[:, :, [2, 1, 0]])


def test_more_pairs_than_fit(device: torch.device) -> None:
    most = max(COPY_TILES)
    pairs = torch.arange(most + 1, device=device)[:, None].repeat(1, 2)
    with pytest.raises(KernelError, match=f"pairs must be at most {most} in a call"):
        copy_blocks(random_storage(device, most + 1, 64), pairs)


@pytest.mark.parametrize("pairs", [[[0, 3]], [[-1, 0]]], ids=str)
def test_no_memory_outside_the_pool_is_touched(device: torch.device, pairs: list[list[int]]) -> None:
    """A GPU's pairs are not looked at before the launch."""
    storage = random_storage(device, 3, 64)
    before = storage.clone()
    copy_blocks(storage, torch.tensor(pairs, device=device))
    assert torch.equal(storage, before)


@pytest.mark.parametrize(("num_blocks", "size"), [(5, 64), (3, 8256)])
def test_out_of_the_pool_and_in_again(device: torch.device, num_blocks: int, size: int) -> None:
    storage = random_storage(device, num_blocks, size)
    before = storage.clone()
    staging = torch.full((4, 2, 2, size), 7, dtype=torch.uint8, device=device)
    blocks = torch.tensor([num_blocks - 1, 0], device=device)
    gather_blocks(storage, blocks, staging)
    assert torch.equal(storage, before)
    assert torch.equal(staging[:2], before[:, :, blocks].permute(2, 0, 1, 3))
    assert (staging[2:] == 7).all()
    scatter_blocks(staging, storage, blocks.flip(0).contiguous())
    expected = before.clone()
    expected[:, :, blocks.flip(0)] = before[:, :, blocks]
    assert torch.equal(storage, expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"blocks": torch.tensor([0, 1, 2])}, "staging must hold 3 blocks"),
        ({"blocks": torch.tensor([0, 1], dtype=torch.int32)}, "blocks must be contiguous int64"),
        (
            {"staging": torch.zeros(2, 2, 2, 128, dtype=torch.uint8)},
            r"staging must be contiguous uint8 \[N, 2, 2, 64\]",
        ),
        ({"staging": torch.zeros(2, 2, 64, 2, dtype=torch.uint8).mT}, "staging must be contiguous"),
        ({"storage": torch.zeros(2, 2, 64, dtype=torch.uint8)}, "storage must be contiguous uint8"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(device: torch.device, wrong: dict[str, Tensor], message: str) -> None:
    arguments = {
        "storage": torch.zeros(2, 2, 3, 64, dtype=torch.uint8),
        "blocks": torch.tensor([0, 1]),
        "staging": torch.zeros(2, 2, 2, 64, dtype=torch.uint8),
    }
    given = {name: tensor.to(device) for name, tensor in (arguments | wrong).items()}
    with pytest.raises(KernelError, match=message):
        gather_blocks(**given)
    with pytest.raises(KernelError, match=message):
        scatter_blocks(**given)
