"""Ranks that are threads of this process: what they exchange lies on a table, and everybody waits for everybody."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from paged_backend.executor.collectives import RankExchange
from paged_backend.executor.ranks import shard_of
from paged_backend.models.shard import WHOLE, Shard

T = TypeVar("T")


class Table:
    """Where ranks lay their tensors."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=60)
        self.tensors: list[Tensor] = [torch.empty(0)] * size


class ThreadExchange(RankExchange):
    """What `RankExchange` does, without torch.distributed."""

    def __init__(self, rank: int, size: int, table: Table) -> None:
        super().__init__(rank, size)
        self._table = table

    def gathered(self, x: Tensor) -> Tensor:
        return torch.stack(self._laid_down(x))

    def swapped(self, x: Tensor) -> Tensor:
        return torch.stack([theirs[self.rank] for theirs in self._laid_down(x)])

    def _laid_down(self, x: Tensor) -> list[Tensor]:
        self._table.tensors[self.rank] = x.clone()
        self._table.barrier.wait()
        tensors = list(self._table.tensors)
        self._table.barrier.wait()
        return tensors


def on_each_rank(size: int, work: Callable[[Shard], T]) -> list[T]:
    """What each rank's thread makes, in the order of ranks."""
    if size == 1:
        return [work(WHOLE)]
    table = Table(size)
    shards = [shard_of(ThreadExchange(rank, size, table)) for rank in range(size)]

    def run(shard: Shard) -> T:
        try:
            return work(shard)
        except BaseException:
            table.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as threads:
        return [future.result() for future in [threads.submit(run, shard) for shard in shards]]
