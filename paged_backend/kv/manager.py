"""The KV cache's bookkeeping: block tables, sharing, copy-on-write and prefixes over one pool of blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from paged_backend.kv.block_pool import BlockPool
from paged_backend.kv.block_table import BlockTable
from paged_backend.kv.prefix_index import PrefixIndex, pack_tokens


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What the cache holds and what the prefix index was worth.

    Attributes:
        num_blocks, num_used_blocks, num_free_blocks: used ones have a holder; free ones may still be found
            again.
        num_indexed_blocks: blocks, held or free, that a prefix can hit.
        prefix_queries, prefix_hits: tokens looked up on admission, and those of them found.
    """

    num_blocks: int
    num_used_blocks: int
    num_free_blocks: int
    num_indexed_blocks: int
    prefix_queries: int
    prefix_hits: int


class KVCacheManager:
    """Owns every block. Questions change nothing; what changes something either fits whole or does nothing.

    A sequence's life: `new_table`, then `cached_prefix` and `start`, then per step `allocate` and `commit`,
    then `free`. Between `free` and the next `start` (a preemption) the table keeps its digests and holds no
    block.

    Args:
        num_blocks: blocks in the pool.
        block_size: tokens in a block.
        enable_prefix_caching: whether full blocks are indexed and found again.
        key: the hash key of the prefix index; None draws a random one.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        enable_prefix_caching: bool = True,
        *,
        key: bytes | None = None,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.pool = BlockPool(num_blocks)
        self.index = PrefixIndex(key=key) if enable_prefix_caching else None
        self._tables: dict[BlockTable, None] = {}
        self._copies: dict[int, int] = {}
        self._copy_sources: set[int] = set()
        self._prefix_queries = 0
        self._prefix_hits = 0

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be allocated now."""
        return self.pool.num_free

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-num_tokens // self.block_size)

    def new_table(self, token_ids: Sequence[int], salt: str | None = None) -> BlockTable:
        """A table for a sequence whose known tokens are `token_ids`, which its owner appends to in place."""
        return BlockTable(token_ids, self.index.root(salt) if self.index is not None else b"")

    def table_like(self, table: BlockTable, token_ids: Sequence[int]) -> BlockTable:
        """A table without blocks for other tokens in the scope of a table."""
        return BlockTable(token_ids, table.root)

    def lookup(self, token_ids: Sequence[int], salt: str | None = None) -> list[int]:
        """The blocks that a new sequence of these tokens would find; see `cached_prefix`."""
        return self.cached_prefix(self.new_table(token_ids, salt))

    def cached_prefix(self, table: BlockTable) -> list[int]:
        """Blocks that hold the longest known prefix of the table's tokens, never all of them.

        At least one token is left to compute, so that there are logits to sample from. Takes nothing and
        reorders nothing; only the digests of the table's own tokens are remembered.
        """
        index = self.index
        found: list[int] = []
        if index is None:
            return found
        parent = table.root
        for i in range((len(table.token_ids) - 1) // self.block_size):
            if i == len(table.digests):
                self._extend_digests(table)
            digest = table.digests[i]
            block = index.find(digest, parent, table.packed[i])
            if block is None:
                break
            found.append(block)
            parent = digest
        return found

    def missing_to_start(self, prefix: list[int], num_tokens: int) -> int:
        """Free blocks that a table with this prefix takes to hold `num_tokens`, its own free ones too."""
        ref_counts = self.pool.ref_counts
        num_free_hits = sum(1 for block in prefix if ref_counts[block] == 0)
        return self.blocks_for(num_tokens) - len(prefix) + num_free_hits

    def start(self, table: BlockTable, prefix: list[int], *, count: bool = True) -> None:
        """Gives a table its cached prefix, which must come from `cached_prefix` with nothing changed since.

        Args:
            count: whether the look-up counts in the statistics (a resumed sequence finding itself does not).
        """
        assert not table.active
        for block in prefix:
            self.pool.hold(block)
        table.block_ids = list(prefix)
        table.num_computed = table.num_writable = len(prefix) * self.block_size
        table.num_indexed = len(prefix)
        table.active = True
        self._tables[table] = None
        if count and self.index is not None:
            self._prefix_queries += len(table.token_ids)
            self._prefix_hits += table.num_computed

    def allocate(self, table: BlockTable, num_tokens: int) -> bool:
        """Makes room for positions up to `num_tokens`, all of it or, returning False, none.

        Where the next position falls into a block with other holders, the table gets a copy of its own; the
        last holder writes in place. `take_copies` has the copies.
        """
        if num_tokens <= table.num_writable:
            return True
        block_ids = table.block_ids
        needed = max(self.blocks_for(num_tokens) - len(block_ids), 0)
        position = table.num_computed // self.block_size
        shared = table.num_computed % self.block_size != 0 and self.pool.ref_counts[block_ids[position]] > 1
        if needed + shared > self.pool.num_free:
            return False
        if shared:
            source = block_ids[position]
            copy = self._allocate_block()
            self.pool.drop(source)
            block_ids[position] = copy
            self._copies[copy] = source
            self._copy_sources.add(source)
        for _ in range(needed):
            block_ids.append(self._allocate_block())
        table.num_writable = len(block_ids) * self.block_size
        return True

    def take_copies(self) -> tuple[tuple[int, int], ...]:
        """Ends a step's allocations: its (source, destination) pairs, to be copied before it computes.

        No destination is twice in it, and none is also a source: until this call a source whose last holder
        goes stays out of the free queue. So the copies may be done in any order, or at once.
        """
        if not self._copy_sources:
            return ()
        copies = tuple((source, copy) for copy, source in self._copies.items())
        for source in self._copy_sources:
            if self.pool.ref_counts[source] == 0:
                self._retire(source)
        self._copies = {}
        self._copy_sources = set()
        return copies

    def commit(self, table: BlockTable, num_computed: int) -> None:
        """Records that K/V are in the cache up to `num_computed`, and indexes the blocks that this filled.

        A block whose tokens are indexed under another block already stays unindexed.
        """
        assert table.active and table.num_computed <= num_computed <= table.num_writable
        table.num_computed = num_computed
        num_full = num_computed // self.block_size
        if self.index is not None:
            if len(table.digests) < num_full:
                self._extend_digests(table)
            for i in range(table.num_indexed, num_full):
                parent = table.digests[i - 1] if i else table.root
                self.index.add(table.digests[i], parent, table.packed[i], table.block_ids[i])
        table.num_indexed = num_full

    def fork(self, parent: BlockTable, token_ids: Sequence[int]) -> BlockTable:
        """A table that shares all blocks of its parent, for a sequence with the same computed tokens."""
        assert parent.active
        child = BlockTable(token_ids, parent.root)
        child.block_ids = list(parent.block_ids)
        child.num_computed = child.num_writable = parent.num_writable = parent.num_computed
        num_shared = parent.num_computed // self.block_size
        child.digests = parent.digests[:num_shared]
        child.packed = parent.packed[:num_shared]
        child.num_indexed = parent.num_indexed
        child.active = True
        for block in child.block_ids:
            self.pool.hold(block)
        self._tables[child] = None
        return child

    def free(self, table: BlockTable) -> None:
        """Gives all blocks of a table back, the tail first, to be evicted before what it hangs on."""
        if not table.active:
            return
        for block in reversed(table.block_ids):
            if self.pool.drop(block):
                if self._copies:
                    self._copies.pop(block, None)
                if block not in self._copy_sources:
                    self._retire(block)
        table.block_ids = []
        table.num_computed = table.num_writable = 0
        table.num_indexed = 0
        table.active = False
        del self._tables[table]

    def stats(self) -> CacheStats:
        """A snapshot, in constant time."""
        return CacheStats(
            num_blocks=self.num_blocks,
            num_used_blocks=self.num_blocks - self.pool.num_free,
            num_free_blocks=self.pool.num_free,
            num_indexed_blocks=0 if self.index is None else len(self.index),
            prefix_queries=self._prefix_queries,
            prefix_hits=self._prefix_hits,
        )

    def num_empty_slots(self) -> int:
        """Slots of used blocks that hold no computed token: the cache's waste. Looks at every table."""
        filled: dict[int, int] = {}
        for table in self._tables:
            start = table.num_computed // self.block_size
            for i in range(start, len(table.block_ids)):
                block = table.block_ids[i]
                tokens = max(table.num_computed - i * self.block_size, 0)
                filled[block] = max(filled.get(block, 0), tokens)
        return sum(self.block_size - tokens for tokens in filled.values())

    def check_invariants(self) -> None:
        """Asserts, between steps, that no block is lost, leaked or doubly owned. For tests."""
        assert not self._copies and not self._copy_sources, "a step's copies were not taken"
        holders: Counter[int] = Counter()
        for table in self._tables:
            assert table.active
            assert len(set(table.block_ids)) == len(table.block_ids), "a block is twice in a table"
            assert len(table.block_ids) == self.blocks_for(table.num_computed), "blocks and tokens disagree"
            assert table.num_computed <= table.num_writable <= len(table.block_ids) * self.block_size
            if table.num_computed < table.num_writable:
                assert self.pool.ref_counts[table.block_ids[-1]] == 1, "a shared block is taken for writable"
            holders.update(table.block_ids)
            self._check_digests(table)
        free = self.pool.free_blocks()
        for block, count in enumerate(self.pool.ref_counts):
            assert count == holders[block], f"block {block}: counted {count}, held {holders[block]}"
        unheld = [block for block in range(self.num_blocks) if not holders[block]]
        assert sorted(free) == unheld, "the free queue is not the set of blocks without holders"
        if self.index is not None:
            self.index.check_invariants()

    def _check_digests(self, table: BlockTable) -> None:
        if self.index is None:
            return
        num_full = table.num_computed // self.block_size
        assert table.num_indexed == num_full
        for i, block in enumerate(table.block_ids):
            digest = self.index.digest_of(block)
            right = digest is None or (i < num_full and digest == table.digests[i])
            assert right, "a block is wrongly indexed"

    def _allocate_block(self) -> int:
        block = self.pool.allocate()
        if self.index is not None:
            self.index.remove(block)
        return block

    def _retire(self, block: int) -> None:
        self.pool.retire(block, keep=self.index is not None and block in self.index)

    def _extend_digests(self, table: BlockTable) -> None:
        """Hashes the full blocks of known tokens that have no digest yet."""
        assert self.index is not None
        size = self.block_size
        token_ids = table.token_ids
        for i in range(len(table.digests), len(token_ids) // size):
            packed = pack_tokens(token_ids[i * size : (i + 1) * size])
            parent = table.digests[i - 1] if i else table.root
            table.packed.append(packed)
            table.digests.append(self.index.digest(parent, packed))
