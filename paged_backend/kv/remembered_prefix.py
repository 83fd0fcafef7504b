"""The prefix that was asked for last: who waits at the head of the queue asks in every step."""

from __future__ import annotations

from paged_backend.kv.block_table import BlockTable
from paged_backend.kv.prefix_index import PrefixIndex
from paged_backend.kv.prefix_search import PrefixSearch


class RememberedPrefix:
    """The longest prefix in the pool, searched for only when a block of the table's tokens has come or gone since.

    Args:
        index: the pool's.
        search: for all groups of layers.
    """

    __slots__ = ("_index", "_num_blocks", "_prefix", "_search", "_table")

    def __init__(self, index: PrefixIndex, search: PrefixSearch) -> None:
        self._index = index
        self._search = search
        self._table: BlockTable | None = None
        self._num_blocks = 0
        self._prefix: list[int] = []

    def of(self, table: BlockTable) -> list[int]:
        """See `PrefixSearch.longest`; whoever gets the list leaves it as it is."""
        num_blocks = self._search.most_blocks(table)
        if not self._holds(table, num_blocks):
            if len(table.digests) < num_blocks:
                table.hash_blocks(self._index, self._search.block_size)
            self._prefix = self._search.longest(table, self._index.find)
            self._table, self._num_blocks = table, num_blocks
            self._index.watch(table.digests[:num_blocks])
        return self._prefix

    def forget(self) -> None:
        """Nobody asks for the same again."""
        self._table = None
        self._index.watch(())

    def check_invariants(self) -> None:
        """Asserts that what is remembered is so. For tests."""
        table = self._table
        if table is not None and self._holds(table, self._num_blocks):
            assert self._prefix == self._search.longest(table, self._index.find), "a prefix is remembered wrongly"

    def _holds(self, table: BlockTable, num_blocks: int) -> bool:
        return table is self._table and num_blocks == self._num_blocks and not self._index.watched_changed
