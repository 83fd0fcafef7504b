"""Blocks on their way within the pool, out of it and into it: to the byte, and nothing beside them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.registry import select_kernels
from paged_backend.kernels.triton.blocks import COPY_TILES, copy_blocks, swap_blocks


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


def host_slots(num_slots: int, size: int, device: torch.device) -> Tensor:
    return torch.full((num_slots, 2, 2, size), 7, dtype=torch.uint8, pin_memory=device.type == "cuda")


@pytest.mark.parametrize(("num_blocks", "size"), [(5, 64), (3, 8256)])
def test_out_of_the_pool_and_in_again(device: torch.device, num_blocks: int, size: int) -> None:
    kernels = select_kernels("triton", device)
    storage, slots = random_storage(device, num_blocks, size), host_slots(4, size, device)
    before = storage.clone()
    kernels.swap_blocks(storage, slots, torch.tensor([[num_blocks - 1, 3], [0, 1]], device=device), inwards=False)
    assert torch.equal(storage, before)
    moved = before.cpu()
    assert torch.equal(slots[3], moved[:, :, -1]) and torch.equal(slots[1], moved[:, :, 0])
    assert (slots[[0, 2]] == 7).all()
    kernels.swap_blocks(storage, slots, torch.tensor([[0, 3], [1, 0]], device=device), inwards=True)
    expected = before.clone()
    expected[:, :, 0], expected[:, :, 1] = before[:, :, -1], 7
    assert torch.equal(storage, expected)


@pytest.mark.parametrize("pairs", [[[0, 4]], [[3, 0]], [[-1, 0]], [[0, -1]]], ids=str)
def test_no_slot_outside_is_touched(device: torch.device, pairs: list[list[int]]) -> None:
    storage, slots = random_storage(device, 3, 64), host_slots(4, 64, device)
    before = storage.clone()
    for inwards in (False, True):
        swap_blocks(storage, slots, torch.tensor(pairs, device=device), inwards)
    assert torch.equal(storage, before) and (slots == 7).all()
