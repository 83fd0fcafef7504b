"""Reference-counted blocks of the KV cache. A block is a number here; its content lives with the executor."""

from __future__ import annotations

from collections import OrderedDict


class BlockPool:
    """Hands out block ids, counts their holders, and queues those that nobody holds.

    A block without a holder keeps its content and waits in the free queue; `allocate` takes the queue's head.
    Blocks that may be found again go to its tail, so the least recently used one is taken first; blocks
    without content worth keeping go to its head.

    Attributes:
        num_blocks: size of the pool; ids are 0 .. num_blocks - 1.
        ref_counts: holders by block id. Read it freely, write it only here.
    """

    __slots__ = ("_free", "num_blocks", "ref_counts")

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks >= 1, num_blocks
        self.num_blocks = num_blocks
        self.ref_counts = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` or a first `hold` can still take."""
        return len(self._free)

    def free_blocks(self) -> list[int]:
        """Ids in the free queue, the next to be taken first."""
        return list(self._free)

    def allocate(self) -> int:
        """Takes the head of the free queue, with one holder. Its old content is lost from now on."""
        assert self._free, "allocate on an empty pool: ask num_free first"
        block, _ = self._free.popitem(last=False)
        self.ref_counts[block] = 1
        return block

    def hold(self, block: int) -> None:
        """Adds a holder; a free block leaves the free queue with its content."""
        if self.ref_counts[block] == 0:
            del self._free[block]
        self.ref_counts[block] += 1

    def drop(self, block: int) -> bool:
        """Takes a holder away, and says whether it was the last: then the caller owes a `retire`."""
        count = self.ref_counts[block] - 1
        assert count >= 0, f"block {block} has no holder"
        self.ref_counts[block] = count
        return count == 0

    def retire(self, block: int, *, keep: bool) -> None:
        """Puts a block without holders into the free queue: at its tail if its content may be found again."""
        assert self.ref_counts[block] == 0 and block not in self._free, block
        self._free[block] = None
        if not keep:
            self._free.move_to_end(block, last=False)
