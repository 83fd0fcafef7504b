"""A step's copies on write: planned as blocks are taken, made before anything is computed."""

from __future__ import annotations

from collections.abc import Callable

from paged_backend.kv.block_pool import BlockPool


class BlockCopies:
    """The copies that a step has to make, and their sources, which nobody may have before they are made.

    Attributes:
        sources: blocks that are to be copied. One whose last holder goes stays out of the free queue until `take`, or
            until its last copy is not wanted any more.

    Args:
        pool: whose blocks they are.
        retire: puts a block without holders into the free queue.
    """

    __slots__ = ("_pool", "_retire", "_source_of", "sources")

    def __init__(self, pool: BlockPool, retire: Callable[[int], None]) -> None:
        self.sources: set[int] = set()
        self._source_of: dict[int, int] = {}
        self._pool = pool
        self._retire = retire

    def __bool__(self) -> bool:
        return bool(self._source_of)

    def add(self, source: int, copy: int) -> None:
        """Plans a copy."""
        self._source_of[copy] = source
        self.sources.add(source)

    def source_of(self, block: int) -> int:
        """Where a block's content is until the copies are made: the block itself, if it is not one of them."""
        return self._source_of.get(block, block)

    def cancel(self, copy: int) -> None:
        """A block has lost its last holder; if it is a copy, nobody wants that any more."""
        source = self._source_of.pop(copy, None)
        if source is not None and source not in self._source_of.values():
            self.sources.remove(source)
            self._retire_unheld(source)

    def take(self) -> tuple[tuple[int, int], ...]:
        """The step's (source, destination) pairs; the next step begins without any."""
        if not self.sources:
            return ()
        copies = tuple((source, copy) for copy, source in self._source_of.items())
        for source in self.sources:
            self._retire_unheld(source)
        self._source_of = {}
        self.sources = set()
        return copies

    def _retire_unheld(self, source: int) -> None:
        if self._pool.ref_counts[source] == 0:
            self._retire(source)
