"""Moves whole blocks between the pool, host memory and the tier on disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from paged_backend.errors import ConfigError
from paged_backend.executor.disk_tier import DiskStats, DiskTier
from paged_backend.executor.kv_storage import KVStorage, lazy_pages
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
    """Host memory for blocks, and the bytes that go there and back. `run` is for the engine's thread.

    Attributes:
        num_slots: blocks that host memory holds.
        disk: the tier below, set before the first `run`; None without one.
    """

    def __init__(self, storage: KVStorage, num_slots: int) -> None:
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
        try:
            pages = lazy_pages(num_slots * self._slot_bytes)
        except OSError as error:
            raise ConfigError(
                f"kv_offloading_size needs {num_slots * self._slot_bytes / _MIB:.0f} MiB, which the system does not "
                f"give ({error.strerror}): lower it."
            ) from error
        self._slots: Tensor = torch.frombuffer(pages, dtype=torch.uint8).view(num_slots, *self._shape)
        self._stored = 0
        self._loaded = 0

    def run(self, transfers: Transfers) -> float:
        """Moves what a step asks for; the seconds that swapping took.

        What goes to disk is copied here and written elsewhere, later, or dropped where the disk does not keep up.
        """
        if self.disk is not None:
            for block, key in transfers.saves:
                self.disk.save(key, partial(self._bytes_of, block))
        start_s = time.perf_counter()
        for block, slot in transfers.swap_outs:
            self._slots[slot].copy_(self._blocks[:, :, block])
        for slot, block in transfers.swap_ins:
            self._blocks[:, :, block].copy_(self._slots[slot])
        self._stored += len(transfers.swap_outs)
        self._loaded += len(transfers.swap_ins)
        return time.perf_counter() - start_s

    def slot(self, slot: int) -> memoryview:
        """A slot's bytes, for a reader to fill while it is reserved."""
        return _bytes(self._slots[slot])

    def stats(self) -> TransferStats:
        """A snapshot."""
        disk = None if self.disk is None else self.disk.stats()
        return TransferStats(self._stored * self._slot_bytes, self._loaded * self._slot_bytes, disk)

    def flush(self, saves: Iterable[tuple[int, BlockKey]], timeout_s: float) -> None:
        """Offers blocks to the disk as `run` does, but waits for room, no longer than that in all."""
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


def _bytes(tensor: Tensor) -> memoryview:
    """A contiguous tensor's memory."""
    return tensor.view(-1).numpy().data
