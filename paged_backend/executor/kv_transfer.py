"""Moves whole blocks between the pool, host memory and the tier on disk."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from paged_backend.errors import ConfigError
from paged_backend.executor.device import Device
from paged_backend.executor.disk_tier import DiskStats, DiskTier
from paged_backend.executor.kv_storage import KVStorage, lazy_pages
from paged_backend.executor.swap_lane import SwapLane
from paged_backend.kernels.interface import Kernels
from paged_backend.kv.host_tier import Transfers
from paged_backend.kv.prefix_index import BlockKey

logger = logging.getLogger(__name__)

_MIB = 2**20
_CLOSE_TIMEOUT_S = 5.0
"""How long what waits to be written may take at the end."""


@dataclass(frozen=True, slots=True)
class TransferStats:
    """Counted from the engine's start.

    Attributes:
        stored_bytes, loaded_bytes: swapped out to host memory, and in from there.
        disk: of the tier on disk; None without one.
    """

    stored_bytes: int = 0
    loaded_bytes: int = 0
    disk: DiskStats | None = None


class KVTransfer:
    """Host memory for blocks, and the bytes that go there and back. `save` and `swap` are the device's work.

    Attributes:
        num_slots: blocks that host memory holds.
        disk: the tier below, set before the first `save`; None without one.
    """

    def __init__(self, storage: KVStorage, num_slots: int, kernels: Kernels, device: Device) -> None:
        """Takes the memory.

        Raises:
            ConfigError: the system does not give it.
        """
        self.num_slots = num_slots
        self.disk: DiskTier | None = None
        self._blocks = storage.blocks
        num_lanes, two, _, block_bytes = storage.blocks.shape
        self._shape = (num_lanes, two, block_bytes)
        self._slot_bytes = num_lanes * two * block_bytes
        self._slots = _host_slots((num_slots, *self._shape), is_pinned=storage.blocks.is_cuda)
        self._lane = SwapLane(storage.blocks, self._slots, kernels, device)
        self._stored = 0
        self._loaded = 0

    def save(self, saves: Iterable[tuple[int, BlockKey]]) -> None:
        """Copies what goes to disk, which is written elsewhere, later, or dropped where the disk does not keep up.

        Waits for a GPU, if that is where the blocks are.
        """
        if self.disk is not None:
            for block, key in saves:
                self.disk.save(key, partial(self._bytes_of, block))

    def pairs(self, transfers: Transfers) -> list[Tensor]:
        """What `swap` needs on the device."""
        return self._lane.pairs(transfers)

    def swap(self, transfers: Transfers, pairs: Sequence[Tensor]) -> tuple[Any, Any]:
        """Moves blocks out and in, before a step that is ordered next; see `SwapLane.swap`."""
        marks = self._lane.swap(transfers, pairs)
        self._stored += len(transfers.swap_outs)
        self._loaded += len(transfers.swap_ins)
        return marks

    def slot(self, slot: int) -> memoryview:
        """A slot's bytes, for a reader to fill while it is reserved."""
        return _bytes(self._slots[slot])

    def stats(self) -> TransferStats:
        """A snapshot."""
        disk = None if self.disk is None else self.disk.stats()
        return TransferStats(self._stored * self._slot_bytes, self._loaded * self._slot_bytes, disk)

    def flush(self, saves: Iterable[tuple[int, BlockKey]], timeout_s: float) -> None:
        """Offers blocks to the disk as `save` does, but waits for room, no longer than that in all."""
        if self.disk is None:
            return
        deadline_s = time.monotonic() + timeout_s
        for block, key in saves:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                logger.warning("not all blocks were written to kv_offloading_dir within %g s", timeout_s)
                break
            self.disk.save(key, partial(self._bytes_of, block), timeout_s=left_s)

    def close(self) -> None:
        """Waits for what is being written, and lets go of the disk."""
        if self.disk is not None:
            self.disk.close(_CLOSE_TIMEOUT_S)

    def _bytes_of(self, block: int) -> memoryview:
        """A copy of a block's bytes."""
        copy = torch.empty(self._shape, dtype=torch.uint8).copy_(self._blocks[:, :, block])
        return _bytes(copy)


def _host_slots(shape: tuple[int, ...], *, is_pinned: bool) -> Tensor:
    """Memory for slots; pinned, which a GPU reads and writes by itself, or given as it is first written.

    Raises:
        ConfigError: the system does not give it.
    """
    num_bytes = math.prod(shape)
    try:
        if is_pinned:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        return torch.frombuffer(lazy_pages(num_bytes), dtype=torch.uint8).view(shape)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
        raise ConfigError(
            f"kv_offloading_size needs {num_bytes / _MIB:.0f} MiB, which the system does not give ({reason}): lower it."
        ) from error


def _bytes(tensor: Tensor) -> memoryview:
    """A contiguous tensor's memory."""
    return tensor.view(-1).numpy().data
