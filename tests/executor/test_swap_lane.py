"""Blocks that cross beside the steps come out as if each step had waited for them; on a thread, and on a late card."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from paged_backend.executor import swap_lane
from paged_backend.executor.cuda_device import CudaDevice
from paged_backend.executor.device import CpuDevice, Device
from paged_backend.executor.swap_lane import SwapLane
from paged_backend.kernels.interface import Kernels
from paged_backend.kv.host_tier import Transfers
from tests.simulated_gpu.card import Card
from tests.simulated_gpu.tensors import CUDA, simulated

NUM_BLOCKS, NUM_SLOTS, LANES, NUM_BYTES = 9, 7, 2, 8


class Indexing:
    """`Kernels.swap_blocks` by operations that wait for nothing."""

    def swap_blocks(self, storage: Tensor, slots: Tensor, pairs: Tensor, *, inwards: bool) -> None:
        blocks = storage.permute(2, 0, 1, 3)
        if inwards:
            blocks.index_copy_(0, pairs[:, 0], slots.index_select(0, pairs[:, 1]))
        else:
            slots.index_copy_(0, pairs[:, 1], blocks.index_select(0, pairs[:, 0]))


class SlowDevice(CpuDevice):
    """Whose side is late, more or less."""

    def __init__(self, seed: int) -> None:
        super().__init__(overlaps=True)
        self._rng = Random(seed)

    def beside(self, work: Callable[[], object], after: Sequence[Any]) -> Any:
        late_s = self._rng.choice([0.0, 0.0, 0.002])
        return super().beside(lambda: (time.sleep(late_s), work()), after)


@contextmanager
def device_of(kind: str, seed: int, patch: pytest.MonkeyPatch) -> Iterator[Device]:
    if kind == "thread":
        device = SlowDevice(seed)
        yield device
        device.close()
        return
    pytest.importorskip("triton")
    with simulated(patch, Card(seed, laziness=[1.0, 0.9, 0.4][seed % 3])):
        yield CudaDevice(CUDA, overlaps=True)


class Life:
    """Steps that move, write and read blocks, two of them under way, and the same one after the other."""

    def __init__(self, device: Device, seed: int) -> None:
        self.rng = rng = Random(seed)
        self.device = device
        self.blocks = torch.zeros(LANES, 2, NUM_BLOCKS, NUM_BYTES, dtype=torch.uint8, device=device.torch_device)
        pinned = device.torch_device.type == "cuda"
        self.slots = torch.empty(NUM_SLOTS, LANES, 2, NUM_BYTES, dtype=torch.uint8, pin_memory=pinned).zero_()
        self.lane = SwapLane(self.blocks, self.slots, cast(Kernels, Indexing()), device)
        self.wanted_blocks, self.wanted_slots = [0] * NUM_BLOCKS, [0] * NUM_SLOTS
        self.under_way: list[tuple[Any, set[int]]] = []
        self.number = 0
        self.read: list[tuple[Tensor, list[int]]] = []
        self.copies = rng.sample(range(NUM_BLOCKS), NUM_BLOCKS)

    def transfers(self) -> Transfers:
        """What a step may move: slots that are being filled by an earlier step are not stored to again."""
        rng = self.rng
        busy = set().union(*(filled for _, filled in self.under_way)) if self.under_way else set()
        free = [slot for slot in range(NUM_SLOTS) if slot not in busy]
        outs = list(zip(rng.sample(range(NUM_BLOCKS), 5), free, strict=False))[: rng.choice([0, 0, 1, 3, 5])]
        ins = list(zip(rng.sample(range(NUM_SLOTS), 5), rng.sample(range(NUM_BLOCKS), 5), strict=True))
        return Transfers(swap_outs=tuple(outs), swap_ins=tuple(ins[: rng.choice([0, 0, 1, 3, 5])]))

    def step(self) -> None:
        self.number = number = self.number % 200 + 1
        transfers, blocks, wanted = self.transfers(), self.blocks, self.wanted_blocks
        for block, slot in transfers.swap_outs:
            self.wanted_slots[slot] = wanted[block]
        for slot, block in transfers.swap_ins:
            wanted[block] = self.wanted_slots[slot]
        seen = list(wanted)
        written = self.rng.sample(range(NUM_BLOCKS), 3)
        for block in written:
            wanted[block] = number
        pairs = self.device.lend(self.lane.pairs(transfers))

        def work() -> tuple[Any, Tensor]:
            marks = self.lane.swap(transfers, pairs)
            read = blocks[1, 1, :, 3].clone()
            for block in written:
                blocks[:, :, block].fill_(number)
            return marks, read

        self.under_way.append((self.device.order(work), {slot for _, slot in transfers.swap_outs}))
        if len(self.under_way) == 2:
            self.end_one(seen)
        else:
            self.seen = seen

    def end_one(self, seen: list[int] | None = None) -> None:
        ordered, filled = self.under_way.pop(0)
        marks, read = ordered.result()
        self.device.seconds(*marks)
        assert read.tolist() == self.seen
        if seen is not None:
            self.seen = seen
        if filled:  # a reader of the disk may have them now
            slot = self.rng.choice(sorted(filled))
            assert self.slots[slot].flatten().tolist() == [self.wanted_slots[slot]] * (LANES * 2 * NUM_BYTES)
            if not any(slot in other for _, other in self.under_way) and slot not in self.loading():
                self.wanted_slots[slot] = 255
                self.slots[slot].fill_(255)

    def loading(self) -> set[int]:
        """Slots that a step under way may still read."""
        return set(range(NUM_SLOTS)) if self.under_way else set()


@pytest.mark.parametrize("kind", ["thread", "card"])
def test_blocks_cross_in_order(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(12):
        with monkeypatch.context() as patch, device_of(kind, seed, patch) as device:
            if seed % 2:  # of the blocks of a step, only some cross at a time
                patch.setattr(swap_lane, "_STAGED_BYTES", 2 * LANES * 2 * NUM_BYTES)
            life = Life(device, seed)
            for _ in range(25):
                life.step()
                if life.rng.random() < 0.2:
                    while life.under_way:
                        life.end_one()
            while life.under_way:
                life.end_one()
            assert life.blocks[0, 0, :, 0].tolist() == life.wanted_blocks
            assert life.slots[:, 1, 1, 5].tolist() == life.wanted_slots
