"""Copies of blocks in host memory: what each slot holds, who needs it, and what a step must move."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from paged_backend.kv.block_pool import BlockPool
from paged_backend.kv.prefix_index import BlockKey, PrefixIndex


@dataclass(frozen=True, slots=True)
class Transfers:
    """What a step moves between the pool, host memory and disk. The order counts: first all of `saves` and `swap_outs`,
    which read blocks that the rest may overwrite, then `swap_ins`.

    Attributes:
        saves: blocks to be kept on disk, whenever that is done, and what finds them there.
        swap_outs: (block, slot); no slot is twice in it.
        swap_ins: (slot, block); no block is twice in it. Their slots hold what was there before the step, or what
            `swap_outs` brings.
    """

    saves: tuple[tuple[int, BlockKey], ...] = ()
    swap_outs: tuple[tuple[int, int], ...] = ()
    swap_ins: tuple[tuple[int, int], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.saves or self.swap_outs or self.swap_ins)


NO_TRANSFERS = Transfers()
"""What most steps move."""


@dataclass(frozen=True, slots=True)
class SwappedBlocks:
    """What a preempted sequence left in host memory.

    Attributes:
        slots: what its blocks held. The sequence is a holder of each.
        places: for each slot, where in `BlockTable.block_ids` its block stood; elsewhere a window had passed.
        num_computed: tokens whose K/V are there.
    """

    slots: Sequence[int]
    places: Sequence[int]
    num_computed: int


class HostTier:
    """Slots of host memory, each as large as a block; the pool's second, larger half.

    A slot is found by what it holds, like a block, or held by a sequence that was swapped out, or both. One that nobody
    holds is taken again, least recently used first. What is stored or loaded here is done by the step that `take` is
    called for; `settle` says whether it was.

    Args:
        num_slots: at least one.
        key: the hash key of the pool's own index, so that a block's digest is the same here.
        keeps: whether blocks are to be kept on disk, too.
    """

    def __init__(self, num_slots: int, key: bytes, *, keeps: bool = False) -> None:
        self.num_slots = num_slots
        self.keeps = keeps
        self._pool = BlockPool(num_slots)
        self._index = PrefixIndex(key=key)
        self._saves: list[tuple[int, BlockKey]] = []
        self._outs: dict[int, int] = {}  # slot -> block
        self._ins: dict[int, int] = {}  # block -> slot
        self._sources: list[int] = []  # slots of _ins, held until they are taken
        self._in_flight: deque[tuple[list[int], list[int]]] = deque()  # slots that a step fills, and reads
        self._loose: set[int] = set()  # slots that are held and cannot be found

    # Questions

    def find(self, key: BlockKey) -> int | None:
        """The slot that holds a block's content, or None."""
        return self._index.find(*key)

    @property
    def num_filled_slots(self) -> int:
        """Slots that can be found, and those that are held."""
        return len(self._index) + len(self._loose)

    def is_loading(self, block: int) -> bool:
        """Whether the step being planned fills this block."""
        return block in self._ins

    # Planning a step

    def save(self, block: int, key: BlockKey) -> None:
        """Asks for a block to be kept on disk, if there is one."""
        if self.keeps:
            self._saves.append((block, key))

    def store(self, block: int, key: BlockKey) -> None:
        """Takes in a block that is about to be overwritten, if it is not here and a slot is free."""
        if self._index.find(*key) is not None or not self._pool.num_free:
            return
        slot = self._take_slot()
        self._outs[slot] = block
        self.publish(slot, key)
        self.release([slot])

    def swap_out(self, blocks: Sequence[int], keys: Sequence[BlockKey]) -> list[int] | None:
        """Holds a slot for each block, for a sequence that gives them up; None, and no change, if they do not fit.

        Args:
            blocks: the sequence's, or where their content is at the beginning of the step.
            keys: those of the leading blocks that are full, as far as they have any. What is here already is shared.
        """
        found = [self._index.find(*key) for key in keys]
        present = [slot for slot in found if slot is not None]
        num_free_hits = sum(1 for slot in present if self._pool.ref_counts[slot] == 0)
        if len(blocks) - len(present) + num_free_hits > self._pool.num_free:
            return None
        for slot in present:
            self._pool.hold(slot)
        slots: list[int] = []
        for i, block in enumerate(blocks):
            known = found[i] if i < len(found) else None
            if known is not None:
                slots.append(known)
                continue
            slot = self._take_slot()
            self._outs[slot] = block
            if i < len(keys):
                self.publish(slot, keys[i])
            slots.append(slot)
        return slots

    def hold_for_step(self, slots: Iterable[int]) -> None:
        """Leaves slots as they are until the step is over, so that `load` may read them."""
        for slot in slots:
            self._pool.hold(slot)
            self._sources.append(slot)

    def load(self, slot: int, block: int) -> None:
        """Copies a slot that `hold_for_step` holds into a block."""
        self._ins[block] = slot

    def cancel_load(self, block: int) -> None:
        """The block went to somebody else before its load was taken."""
        self._ins.pop(block, None)

    def take(self) -> Transfers:
        """Ends a step's planning: what it must move. `settle` must follow; until then nobody else gets the slots."""
        transfers = NO_TRANSFERS
        if self._saves or self._outs or self._ins:
            transfers = Transfers(
                saves=tuple(self._saves),
                swap_outs=tuple((block, slot) for slot, block in self._outs.items()),
                swap_ins=tuple((slot, block) for block, slot in self._ins.items()),
            )
        filled = list(self._outs)
        for slot in filled:
            self._pool.hold(slot)
        self._in_flight.append((filled, self._sources))
        self._saves, self._outs, self._ins, self._sources = [], {}, {}, []
        return transfers

    def settle(self, done: bool) -> frozenset[int]:
        """Ends the oldest step. Where it failed, what its slots hold is unknown: they are found no more, and given
        back."""
        filled, sources = self._in_flight.popleft()
        if not done:
            for slot in filled:
                self._index.remove(slot)
                self._loose.add(slot)
        self.release(filled[::-1])
        self.release(sources)
        return frozenset() if done else frozenset(filled)

    # Slots

    def reserve(self, num_slots: int) -> list[int]:
        """Holds as many free slots, or fewer, for content that comes from elsewhere; see `publish`."""
        return [self._take_slot() for _ in range(min(num_slots, self._pool.num_free))]

    def publish(self, slot: int, key: BlockKey) -> None:
        """A reserved slot holds this block now. Its holder must still `release` it."""
        if self._index.add(*key, slot):
            self._loose.discard(slot)

    def release(self, slots: Iterable[int]) -> None:
        """Takes a holder away from each slot; the first is kept longest, as others hang on it."""
        for slot in reversed(list(slots)):
            if self._pool.drop(slot):
                self._loose.discard(slot)
                self._pool.retire(slot, keep=slot in self._index)

    def check_invariants(self, swapped: Iterable[SwappedBlocks], num_reserved: int = 0) -> None:
        """Asserts, between steps, that exactly the swapped sequences, reservations and steps in flight hold slots. For
        tests."""
        assert not (self._outs or self._ins or self._saves or self._sources)
        holders = sum(len(blocks.slots) for blocks in swapped)
        holders += sum(len(filled) + len(sources) for filled, sources in self._in_flight)
        assert sum(self._pool.ref_counts) == holders + num_reserved, "a slot is lost or leaked"
        for blocks in swapped:
            assert all(self._pool.ref_counts[slot] > 0 for slot in blocks.slots)
        unheld = [slot for slot, count in enumerate(self._pool.ref_counts) if not count]
        assert sorted(self._pool.free_blocks()) == unheld
        loose = {slot for slot, count in enumerate(self._pool.ref_counts) if count and slot not in self._index}
        assert self._loose == loose
        self._index.check_invariants()

    def _take_slot(self) -> int:
        slot = self._pool.allocate()
        self._index.remove(slot)
        self._outs.pop(slot, None)
        self._loose.add(slot)
        return slot
