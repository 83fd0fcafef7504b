"""Keeps blocks on disk beside the engine: one thread writes, one reads, and no step waits for either."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from paged_backend.executor.block_file import BlockFile
from paged_backend.kv.prefix_index import BlockKey

logger = logging.getLogger(__name__)

_QUEUE_BYTES = 256 * 2**20
"""Copies of blocks that may wait to be written; more are dropped."""

_MAX_FAILURES = 8
"""Writes that fail in a row before no more are tried."""


@dataclass(frozen=True, slots=True)
class DiskStats:
    """Of a tier on disk; counted from the engine's start.

    Attributes:
        num_blocks, max_blocks: that it holds, and can hold.
        read_bytes, written_bytes: of blocks.
        num_dropped: blocks that were to be written when too many waited, or after too many failures.
        num_failures: blocks that could not be written or read.
    """

    num_blocks: int = 0
    max_blocks: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    num_dropped: int = 0
    num_failures: int = 0


class DiskRead:
    """Blocks on their way into buffers.

    Attributes:
        num_read: leading blocks that came; final once `done` says so.
    """

    __slots__ = ("_buffers", "_done", "_keys", "num_read")

    def __init__(self, keys: Sequence[BlockKey], buffers: Sequence[memoryview]) -> None:
        self._keys = keys
        self._buffers = buffers
        self._done = threading.Event()
        self.num_read = 0

    @property
    def done(self) -> bool:
        """Whether nothing is written to the buffers any more."""
        return self._done.is_set()

    def wait(self, timeout_s: float) -> None:
        """Waits for `done`, no longer than that."""
        self._done.wait(timeout_s)

    def run(self, read: Callable[[BlockKey, memoryview], bool]) -> None:
        """Reads until the first block that does not come."""
        try:
            for key, buffer in zip(self._keys, self._buffers, strict=True):
                if not read(key, buffer):
                    break
                self.num_read += 1
        finally:
            self._buffers = ()
            self._done.set()


class DiskTier:
    """A file of blocks, with its threads. Nothing raises: what fails is logged and counted, and costs only a hit.

    Attributes:
        hash_key: of the folder; digests must be made with it.
    """

    def __init__(self, file: BlockFile, hash_key: bytes, payload_bytes: int) -> None:
        self.hash_key = hash_key
        self._file = file
        self._payload_bytes = payload_bytes
        self._writes: queue.Queue[tuple[BlockKey, memoryview] | None] = queue.Queue(
            max(1, _QUEUE_BYTES // payload_bytes)
        )
        self._reads: queue.SimpleQueue[DiskRead | None] = queue.SimpleQueue()
        self._waiting: set[bytes] = set()  # digests in the queue of writes
        self._failures_in_row = 0
        self._num_read = 0
        self._num_written = 0
        self._num_dropped = 0
        self._num_failures = 0
        self._threads = [
            threading.Thread(target=self._write_all, name="paged-kv-writer", daemon=True),
            threading.Thread(target=self._read_all, name="paged-kv-reader", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._file

    def save(self, key: BlockKey, copy: Callable[[], memoryview], *, timeout_s: float = 0.0) -> None:
        """Keeps a block, unless it is there already.

        Args:
            copy: makes the copy that is written; called at once, or never.
            timeout_s: how long to wait for room in the queue; after that the block is dropped.
        """
        if key.digest in self._waiting or self._file.touch(key):
            return
        if self._failures_in_row >= _MAX_FAILURES or (self._writes.full() and not timeout_s):
            self._num_dropped += 1
            return
        self._waiting.add(key.digest)
        try:
            self._writes.put((key, copy()), timeout=timeout_s or None)
        except queue.Full:
            self._waiting.discard(key.digest)
            self._num_dropped += 1

    def read(self, keys: Sequence[BlockKey], buffers: Sequence[memoryview]) -> DiskRead:
        """Starts to fill a buffer for each block, in order; they belong to the read until it is done."""
        read = DiskRead(keys, buffers)
        self._reads.put(read)
        return read

    def stats(self) -> DiskStats:
        """A snapshot."""
        return DiskStats(
            num_blocks=len(self._file),
            max_blocks=self._file.num_records,
            read_bytes=self._num_read * self._payload_bytes,
            written_bytes=self._num_written * self._payload_bytes,
            num_dropped=self._num_dropped,
            num_failures=self._num_failures,
        )

    def close(self, timeout_s: float) -> None:
        """Writes what waits, for no longer than that, and lets go of the file."""
        deadline_s = time.monotonic() + timeout_s
        self._reads.put(None)
        try:
            self._writes.put(None, timeout=timeout_s)
        except queue.Full:
            logger.warning("the disk of kv_offloading_dir is too slow: what waits to be written is lost")
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        if not any(thread.is_alive() for thread in self._threads):
            self._file.close()  # else the process's end does it

    def _write_all(self) -> None:
        while (item := self._writes.get()) is not None:
            key, payload = item
            try:
                if self._failures_in_row < _MAX_FAILURES:
                    self._file.write(key, payload)
                    self._num_written += 1
                    self._failures_in_row = 0
            except Exception as error:
                self._fail_write(error)
            finally:
                self._waiting.discard(key.digest)

    def _fail_write(self, error: Exception) -> None:
        self._num_failures += 1
        self._failures_in_row += 1
        if self._failures_in_row == 1:
            logger.warning("a block could not be kept in %s: %s", self._file.path, error)
        if self._failures_in_row == _MAX_FAILURES:
            logger.warning("%d writes to %s failed in a row: no more are tried", _MAX_FAILURES, self._file.path)

    def _read_all(self) -> None:
        while (item := self._reads.get()) is not None:
            item.run(self._read_one)

    def _read_one(self, key: BlockKey, buffer: memoryview) -> bool:
        try:
            came = self._file.read(key, buffer)
        except Exception as error:
            self._num_failures += 1
            logger.warning("a block in %s could not be read: %s", self._file.path, error)
            return False
        self._num_read += came
        return came
