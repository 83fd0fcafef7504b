"""Blocks on their way between the pool and host memory, beside the steps of a device that goes on meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from paged_backend.executor.device import Device
from paged_backend.kernels.interface import Kernels
from paged_backend.kv.host_tier import Transfers

_STAGED_BYTES = 2**26
"""Of blocks on the device, each way, while they cross."""

Pairs = Sequence[tuple[int, int]]


class SwapLane:
    """Between the pool and host memory blocks lie in staging memory on the device. Between the pool and that they are
    moved in order with the steps, which takes next to nothing; across the bus beside them.

    So a step waits for blocks that it has loaded itself, and its loads begin while the step before is computed; what
    leaves the pool may be overwritten by the very step that it leaves in, and only what leaves next waits for it. What
    loads a slot comes after what stores to it, in the same step or an earlier one. A device that does not overlap moves
    them at once.
    """

    def __init__(self, blocks: Tensor, slots: Tensor, kernels: Kernels, device: Device) -> None:
        """
        Args:
            blocks: the pool, uint8 [lanes, 2, blocks, block_bytes].
            slots: host memory, uint8 [slots, lanes, 2, block_bytes], as `device` wants it for copies beside.
        """
        self._blocks = blocks
        self._slots = slots
        self._kernels = kernels
        self._device = device
        self._num_staged = max(1, min(len(slots), _STAGED_BYTES // slots[0].nbytes))
        shape = (self._num_staged if device.overlaps else 0, *slots.shape[1:])
        self._leaving, self._coming = (torch.zeros(shape, dtype=torch.uint8, device=blocks.device) for _ in range(2))
        self._left: Any = None  # marks: after which each may be written to again
        self._came: Any = None

    def pairs(self, transfers: Transfers) -> list[Tensor]:
        """What `swap` reads on the device: for each part of the blocks, (block, place in staging memory)."""
        if not self._device.overlaps:
            ins = [(block, slot) for slot, block in transfers.swap_ins]
            both: tuple[Pairs, Pairs] = (transfers.swap_outs, ins)
            return [torch.tensor(pairs, dtype=torch.int64).view(-1, 2) for pairs in both]
        outs = [[block for block, _ in part] for part in self._parts(transfers.swap_outs)]
        into = [[block for _, block in part] for part in self._parts(transfers.swap_ins)]
        return [torch.stack([torch.tensor(part), torch.arange(len(part))], 1) for part in (*outs, *into)]

    def swap(self, transfers: Transfers, pairs: Sequence[Tensor]) -> tuple[Any, Any]:
        """Orders a step's moves, before the step itself.

        Args:
            pairs: on the device, see `pairs`.

        Returns:
            Marks of their beginning and end.
        """
        device, swap_blocks = self._device, self._kernels.swap_blocks
        if not device.overlaps:
            begin = device.mark()
            for moved, inwards in zip(pairs, (False, True), strict=True):
                if len(moved):
                    swap_blocks(self._blocks, self._slots, moved, inwards=inwards)
            return begin, device.mark()
        outs, ins = list(self._parts(transfers.swap_outs)), list(self._parts(transfers.swap_ins))
        begin = device.beside(_nothing, ())
        stored = {slot for _, slot in transfers.swap_outs}
        loaded = None
        if ins and not any(slot in stored for slot, _ in ins[0]):
            loaded = self._load(ins[0])  # before what is stored, which waits for the step before
        for part, moved in zip(outs, pairs, strict=False):
            if self._left is not None:
                device.wait(self._left)
            swap_blocks(self._blocks, self._leaving, moved, inwards=False)
            self._left = device.beside(partial(self._store, part), (device.mark(),))
        for part, moved in zip(ins, pairs[len(outs) :], strict=True):
            device.wait(self._load(part) if loaded is None else loaded)
            loaded = None
            swap_blocks(self._blocks, self._coming, moved, inwards=True)
            self._came = device.mark()
        return begin, device.beside(_nothing, ())

    def _load(self, part: Pairs) -> Any:
        return self._device.beside(partial(self._copy_in, part), () if self._came is None else (self._came,))

    def _copy_in(self, part: Pairs) -> None:
        for place, slot, count in _runs([slot for slot, _ in part]):
            self._coming[place : place + count].copy_(self._slots[slot : slot + count], non_blocking=True)

    def _store(self, part: Pairs) -> None:
        for place, slot, count in _runs([slot for _, slot in part]):
            self._slots[slot : slot + count].copy_(self._leaving[place : place + count], non_blocking=True)

    def _parts(self, pairs: Pairs) -> Iterator[Pairs]:
        """As many at a time as fit into staging memory."""
        return (pairs[first : first + self._num_staged] for first in range(0, len(pairs), self._num_staged))


def _runs(slots: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(place, slot, count) of slots that follow one another."""
    borders = [0, *(place for place, (a, b) in enumerate(pairwise(slots), 1) if b != a + 1), len(slots)]
    return ((begin, slots[begin], end - begin) for begin, end in pairwise(borders))


def _nothing() -> None:
    """Work that is a place in the order, and nothing else."""
