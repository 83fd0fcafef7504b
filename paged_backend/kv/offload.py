"""Which blocks of which sequences go to host memory, and come back from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from paged_backend.kv.block_table import BlockTable
from paged_backend.kv.host_tier import HostTier, SwappedBlocks
from paged_backend.kv.prefix_index import BlockKey, PrefixIndex


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
        block_size: tokens in a block.
        num_slots, key, keeps_on_disk: see `HostTier`.
    """

    def __init__(
        self, index: PrefixIndex | None, block_size: int, num_slots: int, key: bytes, keeps_on_disk: bool
    ) -> None:
        self.host = HostTier(num_slots, key, keeps=keeps_on_disk)
        self._index = index
        self._block_size = block_size
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

    def start(self, table: BlockTable, allocate: Callable[[], int], count: bool) -> None:
        """Brings back what comes after the prefix that a table has found in the pool.

        Args:
            allocate: takes a block of the pool.
            count: whether the look-up counts in the statistics.
        """
        prefix, swapped = table.block_ids, table.swapped
        if self.host.keeps:
            for i, block in enumerate(prefix):  # found again, so it may well be once more
                self.host.save(block, table.key(i))
        slots = self._slots_after(table, len(prefix))
        self.host.hold_for_step(slots)  # before blocks are taken, whose old content needs slots, too
        for slot in slots:
            block = allocate()
            prefix.append(block)
            self.host.load(slot, block)
        num_found = table.num_computed
        table.num_computed = len(prefix) * self._block_size
        if swapped is not None and slots:
            table.num_computed = swapped.num_computed  # its last block may be half full
        table.num_writable = len(prefix) * self._block_size
        if count:
            self._queries += len(table.token_ids) - num_found
            self._hits += table.num_computed - num_found
        if swapped is not None:
            self.drop(table)

    def swap_out(self, table: BlockTable, blocks: Sequence[int]) -> SwappedBlocks | None:
        """Holds slots for a table that gives its blocks up; None, and no change, where there is no room.

        Args:
            blocks: where the table's computed tokens are as the step begins.
        """
        if not blocks or any(self.host.is_loading(block) for block in blocks):
            return None
        num_full = table.num_computed // self._block_size
        keys = [] if self._index is None else [table.key(i) for i in range(num_full)]
        slots = self.host.swap_out(blocks, keys)
        if slots is None:
            return None
        self._swapped[table] = None
        return SwappedBlocks(slots, table.num_computed)

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

    def missing(self, table: BlockTable, num_found: int) -> Iterator[BlockKey]:
        """The blocks of a table's tokens from where neither the pool (num_found blocks) nor host memory goes on."""
        first = num_found + len(self._slots_after(table, num_found))
        return (table.key(i) for i in range(first, self._num_findable(table)))

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

    def _slots_after(self, table: BlockTable, num_found: int) -> Sequence[int]:
        """The slots that continue a prefix of num_found blocks."""
        if table.swapped is not None:
            return table.swapped.slots[num_found:]
        slots: list[int] = []
        # Digests that are missing here were not asked for: the pool's own search ended before them.
        for i in range(num_found, min(self._num_findable(table), len(table.digests))):
            slot = self.host.find(table.key(i))
            if slot is None:
                break
            slots.append(slot)
        return slots

    def _num_findable(self, table: BlockTable) -> int:
        """Full blocks of known tokens that leave one token to compute."""
        return (len(table.token_ids) - 1) // self._block_size
