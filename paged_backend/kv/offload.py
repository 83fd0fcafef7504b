"""Which blocks of which sequences go to host memory, and come back from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from paged_backend.kv.block_table import BlockTable
from paged_backend.kv.host_tier import HostTier, SwappedBlocks
from paged_backend.kv.layer_group import NO_BLOCK
from paged_backend.kv.prefix_index import BlockKey, PrefixIndex
from paged_backend.kv.prefix_search import PrefixSearch

_FIRST_SLOT = NO_BLOCK - 1
"""Among block ids, slot i is _FIRST_SLOT - i: what is not a block's is NO_BLOCK or a slot's."""


@dataclass(frozen=True, slots=True)
class OffloadStats:
    """What the host tier holds and what it was worth.

    Attributes:
        num_slots: blocks that it can hold.
        num_filled_slots: those that hold something that can be found, or that somebody holds.
        num_swapped: sequences that wait with their blocks here.
        queries, hits: of the tokens looked up on admission, those that the pool did not have, and those of them that
            came from here (from disk by way of here, too).
    """

    num_slots: int = 0
    num_filled_slots: int = 0
    num_swapped: int = 0
    queries: int = 0
    hits: int = 0


class OffloadManager:
    """Between block tables and the host tier; only `KVCacheManager` calls what changes it.

    Args:
        index: the pool's; None where full blocks are not found again. Then only preempted sequences come here.
        search: the pool's.
        num_slots, key, keeps_on_disk: see `HostTier`.
    """

    def __init__(
        self, index: PrefixIndex | None, search: PrefixSearch, num_slots: int, key: bytes, keeps_on_disk: bool
    ) -> None:
        assert index is not None or not keeps_on_disk, "what nobody finds is not kept"
        self.host = HostTier(num_slots, key, keeps=keeps_on_disk)
        self._index = index
        self._search = search
        self._swapped: dict[BlockTable, None] = {}
        self._num_reserved = 0
        self._queries = 0
        self._hits = 0

    def evict(self, block: int) -> None:
        """A block is about to be overwritten; it is still in the pool's index, if it was."""
        key = None if self._index is None else self._index.key_of(block)
        if key is not None:
            self.host.save(block, key)
            self.host.store(block, key)

    def extend(self, table: BlockTable, prefix: Sequence[int]) -> list[int]:
        """What a table begins with, that found this prefix in the pool: laid out like it, with slots where `load` is to
        put blocks. Changes nothing.

        What was swapped out comes back whole, unless the pool knows more of the tokens by now. Else the prefix is the
        longest that pool and host memory have together.
        """
        search, swapped = self._search, table.swapped
        num_groups = len(search.groups)
        num_found = len(prefix) // num_groups
        if swapped is not None and num_found * search.block_size < swapped.num_computed:
            begin = [NO_BLOCK] * (-(-swapped.num_computed // search.block_size) * num_groups)
            for place, slot in zip(swapped.places, swapped.slots, strict=True):
                begin[place] = prefix[place] if place < len(prefix) else _FIRST_SLOT - slot
                # The window has passed in the pool's shorter prefix no further than in what was swapped out.
                assert begin[place] != NO_BLOCK
            return begin
        if self._index is None or num_found == search.most_blocks(table):
            return list(prefix)
        return search.longest(table, self._find)

    def load(self, table: BlockTable, allocate: Callable[[], int], count: bool) -> None:
        """Begins to bring back what `extend` has put into a table, whose blocks are held and whose num_computed is that
        of the pool's prefix.

        Args:
            allocate: takes a block of the pool.
            count: whether the look-up counts in the statistics.
        """
        block_ids, swapped, size = table.block_ids, table.swapped, self._search.block_size
        if self.host.keeps:
            for block in block_ids:  # found again, so it may well be once more
                if block >= 0:
                    self._save(block)
        places = [place for place, block in enumerate(block_ids) if block <= _FIRST_SLOT]
        slots = [_FIRST_SLOT - block_ids[place] for place in places]
        self.host.hold_for_step(slots)  # before blocks are taken, whose old content needs slots, too
        for place, slot in zip(places, slots, strict=True):
            block_ids[place] = block = allocate()
            self.host.load(slot, block)
        num_found = table.num_computed
        if swapped is not None and num_found < swapped.num_computed:
            table.num_computed = swapped.num_computed  # its last block may be half full
        else:
            table.num_computed = len(block_ids) // len(self._search.groups) * size
        if count:
            self._queries += len(table.token_ids) - num_found
            self._hits += table.num_computed - num_found
            table.usage.num_external_tokens += table.num_computed - num_found
        if swapped is not None:
            self.drop(table)

    def swap_out(self, table: BlockTable, blocks: Sequence[int]) -> SwappedBlocks | None:
        """Holds slots for a table that gives its blocks up; None, and no change, where there is no room.

        Args:
            blocks: laid out like the table's: where its computed tokens are as the step begins.
        """
        places = [place for place, block in enumerate(blocks) if block != NO_BLOCK]
        if not places or any(self.host.is_loading(blocks[place]) for place in places):
            return None
        suffixes, keys = self._search.suffixes, []
        if self._index is not None:
            num_full = table.num_computed // self._search.block_size * len(suffixes)
            keys = [
                table.key(place // len(suffixes), suffixes[place % len(suffixes)])
                for place in places
                if place < num_full
            ]
        slots = self.host.swap_out([blocks[place] for place in places], keys)
        if slots is None:
            return None
        self._swapped[table] = None
        return SwappedBlocks(slots, places, table.num_computed)

    def drop(self, table: BlockTable) -> None:
        """A swapped-out table needs its slots no more."""
        assert table.swapped is not None
        self.host.release(table.swapped.slots)
        table.swapped = None
        del self._swapped[table]

    def settle(self, done: bool) -> None:
        """Ends a step; see `HostTier.settle`. Tables whose slots were not filled have nothing here any more."""
        unknown = self.host.settle(done)
        if unknown:
            for table in list(self._swapped):
                if table.swapped is not None and not unknown.isdisjoint(table.swapped.slots):
                    self.drop(table)

    def missing(self, table: BlockTable, elsewhere: Callable[[BlockKey], bool]) -> list[BlockKey]:
        """What of the longest prefix that pool, host memory and another place know together is only in that one; those
        before others in the sequence first."""
        known, wanted = 0, 1

        def find(digest: bytes, parent: bytes, tokens: bytes) -> int | None:
            if self._find(digest, parent, tokens) is not None:
                return known
            return wanted if elsewhere(BlockKey(digest, parent, tokens)) else None

        suffixes = self._search.suffixes
        found = self._search.longest(table, find)
        return [
            table.key(place // len(suffixes), suffixes[place % len(suffixes)])
            for place, where in enumerate(found)
            if where == wanted
        ]

    def reserve(self, num_slots: int) -> list[int]:
        """Takes free slots, as many or fewer, for blocks that are read from disk; each must be given to `fill`."""
        slots = self.host.reserve(num_slots)
        self._num_reserved += len(slots)
        return slots

    def fill(self, slots: Sequence[int], keys: Sequence[BlockKey]) -> None:
        """Ends a reservation: the leading slots hold the blocks of these keys, the others nothing."""
        for slot, key in zip(slots, keys, strict=False):
            self.host.publish(slot, key)
        self.host.release(slots)
        self._num_reserved -= len(slots)

    def stats(self) -> OffloadStats:
        """A snapshot, in constant time."""
        host = self.host
        return OffloadStats(host.num_slots, host.num_filled_slots, len(self._swapped), self._queries, self._hits)

    def check_invariants(self) -> None:
        """Asserts, between steps, that slots and swapped tables agree. For tests."""
        assert all(table.swapped is not None and not table.active for table in self._swapped)
        swapped = [table.swapped for table in self._swapped if table.swapped is not None]
        self.host.check_invariants(swapped, self._num_reserved)

    def _save(self, block: int) -> None:
        key = None if self._index is None else self._index.key_of(block)
        if key is not None:
            self.host.save(block, key)

    def _find(self, digest: bytes, parent: bytes, tokens: bytes) -> int | None:
        """The block of the pool that holds what this key is for, else the slot."""
        block = None if self._index is None else self._index.find(digest, parent, tokens)
        if block is not None:
            return block
        slot = self.host.find(BlockKey(digest, parent, tokens))
        return None if slot is None else _FIRST_SLOT - slot
