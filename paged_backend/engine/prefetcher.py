"""Requests whose prefix is on disk wait here while it is read, beside the batch, not in front of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from paged_backend.engine.request import EngineRequest
from paged_backend.executor.disk_tier import DiskRead, DiskTier
from paged_backend.executor.kv_transfer import KVTransfer
from paged_backend.kv.manager import KVCacheManager
from paged_backend.kv.prefix_index import BlockKey

_MAX_WAIT_S = 5.0
"""After that a request is computed without what is still being read."""

_IDLE_WAIT_S = 0.005
"""How long an engine with nothing else to do waits for the disk at a time."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A request, and the reads that it waits for."""

    seed: int
    num_tokens: int
    reads: tuple[DiskRead, ...]
    deadline_s: float


class Prefetcher:
    """Reads blocks from disk into slots of host memory, where admission then finds them. One thread only.

    A request is looked up once, when it arrives. What of its prefix neither the pool nor host memory has is read if
    the disk has it, and the request is handed on when that is done, well or not: what did not come is computed. Two
    requests for the same blocks wait for the same read.
    """

    def __init__(self, kv: KVCacheManager, transfer: KVTransfer, disk: DiskTier) -> None:
        assert kv.offload is not None, "blocks are read into host memory"
        self._kv = kv
        self._offload = kv.offload
        self._transfer = transfer
        self._disk = disk
        self._waiting: dict[str, _Waiting] = {}
        self._reads: dict[DiskRead, tuple[list[int], list[BlockKey]]] = {}

    @property
    def num_waiting(self) -> int:
        """Requests that wait here."""
        return len(self._waiting)

    @property
    def num_waiting_tokens(self) -> int:
        """Of their prompts."""
        return sum(waiting.num_tokens for waiting in self._waiting.values())

    def begin(self, request: EngineRequest, seed: int) -> bool:
        """Takes a request, and its seed, to wait for its prefix; False if there is nothing to wait for."""
        wanted = self._kv.missing_prefix(request.prompt_token_ids, request.cache_salt, self._disk.__contains__)
        if not wanted:
            return False
        digests = {key.digest for key in wanted}
        reads = [read for read, (_, keys) in self._reads.items() if not digests.isdisjoint(key.digest for key in keys)]
        coming = {key.digest for read in reads for key in self._reads[read][1]}
        rest = [key for key in wanted if key.digest not in coming]
        slots = self._offload.reserve(len(rest))
        if slots:
            rest = rest[: len(slots)]
            read = self._disk.read(rest, [self._transfer.slot(slot) for slot in slots])
            self._reads[read] = slots, rest
            reads.append(read)
        if reads:
            self._waiting[request.key] = _Waiting(
                seed, len(request.prompt_token_ids), tuple(reads), time.monotonic() + _MAX_WAIT_S
            )
        return bool(reads)

    def forget(self, key: str) -> None:
        """The request is over; one that does not wait here is no error. Its reads go on."""
        self._waiting.pop(key, None)

    def take_ready(self, *, wait: bool) -> Iterator[tuple[str, int]]:
        """The keys of the requests whose wait is over, with their seeds, in order of arrival.

        Args:
            wait: if none is, for a moment, as there is nothing else to do.
        """
        if wait and self._waiting:
            next(iter(self._waiting.values())).reads[-1].wait(_IDLE_WAIT_S)
        for read in [read for read in self._reads if read.done]:
            slots, keys = self._reads.pop(read)
            self._offload.fill(slots, keys[: read.num_read])
        now_s = time.monotonic()
        for key, waiting in list(self._waiting.items()):
            if all(read.done for read in waiting.reads) or now_s >= waiting.deadline_s:
                del self._waiting[key]
                yield key, waiting.seed
