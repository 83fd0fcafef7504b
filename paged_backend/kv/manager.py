"""The KV cache's bookkeeping: block tables, sharing, copy-on-write and prefixes over one pool of blocks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from paged_backend.kv.block_copies import BlockCopies
from paged_backend.kv.block_life import BlockWatch
from paged_backend.kv.block_pool import BlockPool
from paged_backend.kv.block_table import BlockTable
from paged_backend.kv.cache_stats import NO_OFFLOAD, BlockState, CacheStats
from paged_backend.kv.host_tier import NO_TRANSFERS, Transfers
from paged_backend.kv.layer_group import NO_BLOCK, LayerGroup
from paged_backend.kv.offload import OffloadManager
from paged_backend.kv.pool_shape import PoolShape
from paged_backend.kv.prefix_index import BlockKey, PrefixIndex, new_hash_key
from paged_backend.kv.prefix_search import PrefixSearch
from paged_backend.kv.remembered_prefix import RememberedPrefix


class KVCacheManager:
    """Owns every block. Questions change nothing; what changes something either fits whole or does nothing.

    A sequence's life: `new_table`, then `cached_prefix` and `start`, then per step `allocate` and `commit`,
    then `free`. Between `free` and the next `start` (a preemption) the table keeps its digests and holds no
    block; where `swap_out` came in place of `free`, its blocks' content waits in host memory.

    Where layers see differently far back, each group of them has its own blocks of a sequence, all out of one pool: a
    block holds the keys and values of one group. What falls out of a group's window is given back as the sequence
    goes on, and may be found again as part of a prefix like any other free block.

    Args:
        num_blocks: blocks in the pool.
        block_size: tokens in a block.
        enable_prefix_caching: whether full blocks are indexed and found again.
        groups: of layers; None means one that sees all.
        key: the hash key of the prefix index; None draws a random one.
        num_host_slots: blocks that the host tier holds; 0 for none. It takes in what the pool forgets.
        keeps_on_disk: whether blocks worth it are offered to a tier on disk (`Transfers.saves`); needs a host tier.
        watch: follows the life of some blocks; None for nobody.
        clock_ns: what the time that blocks are held is measured with, in nanoseconds.

    Attributes:
        shape: what fits into it.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        enable_prefix_caching: bool = True,
        *,
        groups: Sequence[LayerGroup] | None = None,
        key: bytes | None = None,
        num_host_slots: int = 0,
        keeps_on_disk: bool = False,
        watch: BlockWatch | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        key = key or new_hash_key()
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.groups = (LayerGroup(0, block_size, 1),) if groups is None else tuple(groups)
        self.shape = PoolShape(num_blocks, block_size, self.groups)
        self.pool = BlockPool(num_blocks)
        self.index = PrefixIndex(key=key) if enable_prefix_caching else None
        self._search = PrefixSearch(self.groups, block_size)
        self._remembered = None if self.index is None else RememberedPrefix(self.index, self._search)
        self._windowed = [(g, group) for g, group in enumerate(self.groups) if group.window]
        self.offload: OffloadManager | None = None
        if num_host_slots:
            self.offload = OffloadManager(self.index, self._search, num_host_slots, key, keeps_on_disk)
        self._tables: dict[BlockTable, None] = {}
        self._copies = BlockCopies(self.pool, self._retire)
        self._prefix_queries = 0
        self._prefix_hits = 0
        self._watch = watch
        self._clock_ns = clock_ns
        self._num_planned_steps = 0
        self._num_steps = 0  # that are over

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be allocated now."""
        return self.pool.num_free

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that a sequence of so many tokens holds at most at any time."""
        return self.shape.blocks_for(num_tokens)

    def new_table(self, token_ids: Sequence[int], salt: str | None = None) -> BlockTable:
        """A table for a sequence whose known tokens are `token_ids`, which its owner appends to in place."""
        return BlockTable(token_ids, self.index.root(salt) if self.index is not None else b"")

    def table_like(self, table: BlockTable, token_ids: Sequence[int]) -> BlockTable:
        """A table of the same request without blocks, for other tokens in the scope of a table."""
        return BlockTable(token_ids, table.root, table.usage)

    def lookup(self, token_ids: Sequence[int], salt: str | None = None) -> list[int]:
        """The blocks that a new sequence of these tokens would find; see `cached_prefix`."""
        return self.cached_prefix(self.new_table(token_ids, salt))

    def cached_prefix(self, table: BlockTable) -> list[int]:
        """Blocks that hold the longest known prefix of the table's tokens, never all of them.

        Laid out like `BlockTable.block_ids`. A group with a window needs no more than the window before the prefix's
        end; of what lies before that it gets NO_BLOCK. At least one token is left to compute, so that there are logits
        to sample from. Takes nothing and reorders nothing; only the digests of the table's own tokens are remembered,
        and the answer, for who asks again before any of these blocks came or went.
        """
        return [] if self._remembered is None else self._remembered.of(table)

    def missing_to_start(self, prefix: list[int], num_tokens: int) -> int:
        """Free blocks that a table with this prefix takes at most to hold `num_tokens`, its own free ones too."""
        ref_counts, num_groups = self.pool.ref_counts, len(self.groups)
        num_blocks, end = -(-num_tokens // self.block_size), len(prefix) // num_groups * self.block_size
        missing = 0
        for g, group in enumerate(self.groups):
            first = group.first_block(end)
            num_shared = sum([1 for block in prefix[first * num_groups + g :: num_groups] if ref_counts[block]])
            missing += min(num_blocks - first - num_shared, group.most_blocks(num_tokens))
        return missing

    def start(self, table: BlockTable, prefix: list[int], *, count: bool = True) -> None:
        """Gives a table its cached prefix, which must come from `cached_prefix` with nothing changed since.

        What host memory has of the tokens after it, or all that was swapped out, comes back in this step, into
        blocks that `missing_to_start` has counted.

        Args:
            count: whether the look-up counts in the statistics (a resumed sequence finding itself does not).
        """
        assert not table.active
        num_groups = len(self.groups)
        table.num_indexed = len(prefix) // num_groups
        table.num_computed = table.num_indexed * self.block_size
        table.block_ids = list(prefix) if self.offload is None else self.offload.extend(table, prefix)
        for block in table.block_ids:
            if block >= 0:
                self.pool.hold(block)
                if self._watch is not None:
                    self._watch.use(block)
        table.active = True
        self._tables[table] = None
        if self._remembered is not None:
            self._remembered.forget()
        if count and self.index is not None:
            self._prefix_queries += len(table.token_ids)
            self._prefix_hits += table.num_computed
        if self.offload is not None:
            self.offload.load(table, self._allocate_block, count)
        table.num_writable = len(table.block_ids) // num_groups * self.block_size
        table.usage.start(self._num_planned_steps)
        table.usage.gain(table.num_held, self._clock_ns())

    def allocate(self, table: BlockTable, num_tokens: int) -> bool:
        """Makes room for positions up to `num_tokens`, all of it or, returning False, none.

        Where the next position falls into a block with other holders, the table gets a copy of its own; the
        last holder writes in place. `take_copies` has the copies.
        """
        if num_tokens <= table.num_writable:
            return True
        block_ids, num_groups = table.block_ids, len(self.groups)
        num_blocks = max(-(-num_tokens // self.block_size), len(block_ids) // num_groups)
        needed = num_blocks * num_groups - len(block_ids)
        shared: Sequence[int] = ()
        if table.num_computed % self.block_size:
            first = table.num_computed // self.block_size * num_groups
            shared = [i for i in range(first, first + num_groups) if self.pool.ref_counts[block_ids[i]] > 1]
        if needed + len(shared) > self.pool.num_free:
            return False
        for i in shared:
            source = block_ids[i]
            copy = self._allocate_block()
            self.pool.drop(source)
            block_ids[i] = copy
            self._copies.add(source, copy)
        for _ in range(needed):
            block_ids.append(self._allocate_block())
        table.usage.gain(needed, self._clock_ns())
        table.num_writable = num_blocks * self.block_size
        return True

    def missing_to_write(self, table: BlockTable, num_tokens: int) -> int:
        """Blocks that `allocate` takes for a table that shares none of those which it is to write to."""
        if num_tokens <= table.num_writable:
            return 0
        return max(-(-num_tokens // self.block_size) * len(self.groups) - len(table.block_ids), 0)

    def take_copies(self) -> tuple[tuple[int, int], ...]:
        """Ends a step's allocations: its (source, destination) pairs, to be copied before it computes.

        No destination is twice in it, and none is also a source: until this call a source whose last holder
        goes stays out of the free queue. So the copies may be done in any order, or at once.
        """
        self._num_planned_steps += 1
        return self._copies.take()

    def take_transfers(self) -> Transfers:
        """Ends a step's planning: what it must move before anything else; `settle_transfers` must follow."""
        return NO_TRANSFERS if self.offload is None else self.offload.host.take()

    def settle_transfers(self, done: bool) -> None:
        """Ends the oldest step. Where it failed, sequences that it was to swap out must be computed again."""
        self._num_steps += 1
        if self.offload is not None:
            self.offload.settle(done)

    def commit(self, table: BlockTable, num_computed: int) -> None:
        """Records that K/V are in the cache up to `num_computed`, indexes the blocks that this filled, and gives back
        those that no token to come sees.

        A block whose tokens are indexed under another block already stays unindexed.
        """
        assert table.active and table.num_computed <= num_computed <= table.num_writable
        table.num_computed = num_computed
        num_full = num_computed // self.block_size
        if self.index is not None:
            if len(table.digests) < num_full:
                table.hash_blocks(self.index, self.block_size)
            for i in range(table.num_indexed, num_full):
                parent = table.digests[i - 1] if i else table.root
                for place, suffix in enumerate(self._search.suffixes, i * len(self.groups)):
                    block = table.block_ids[place]
                    if block != NO_BLOCK:  # what came from host memory may have begun with a window passed
                        self.index.add(table.digests[i] + suffix, parent, table.packed[i], block)
        table.num_indexed = num_full
        for g, group in self._windowed:
            self._give_back(table, g, group.first_block(num_computed))

    def fork(self, parent: BlockTable, token_ids: Sequence[int]) -> BlockTable:
        """A table that shares all blocks of its parent, for a sequence with the same computed tokens."""
        assert parent.active
        child = BlockTable(token_ids, parent.root, parent.usage)
        child.block_ids = list(parent.block_ids)
        child.num_computed = child.num_writable = parent.num_writable = parent.num_computed
        num_shared = parent.num_computed // self.block_size
        child.digests = parent.digests[:num_shared]
        child.packed = parent.packed[:num_shared]
        child.num_indexed = parent.num_indexed
        child.active = True
        for block in child.block_ids:
            if block != NO_BLOCK:
                self.pool.hold(block)
        self._tables[child] = None
        child.usage.start(self._num_planned_steps)
        child.usage.gain(child.num_held, self._clock_ns())
        return child

    def free(self, table: BlockTable) -> None:
        """Gives all blocks of a table back, the tail first, to be evicted before what it hangs on."""
        if not table.active:
            if table.swapped is not None and self.offload is not None:
                self.offload.drop(table)
            return
        table.usage.lose(table.num_held, self._clock_ns())
        table.usage.stop(self._num_steps)
        for block in reversed(table.block_ids):
            if block != NO_BLOCK and self.pool.drop(block):
                if self._copies:
                    self._copies.cancel(block)
                if self.offload is not None:
                    self.offload.host.cancel_load(block)
                if block not in self._copies.sources:
                    self._retire(block)
        table.block_ids = []
        table.num_computed = table.num_writable = 0
        table.num_indexed = 0
        table.active = False
        del self._tables[table]

    def swap_out(self, table: BlockTable) -> bool:
        """`free`, but the content goes to host memory until the next `start`; False, and no change, without room."""
        if self.offload is None:
            return False
        # A copy that was planned has not been made: its content is still where it comes from.
        end = -(-table.num_computed // self.block_size) * len(self.groups)
        blocks = [self._copies.source_of(block) for block in table.block_ids[:end]]
        swapped = self.offload.swap_out(table, blocks)
        if swapped is None:
            return False
        self.free(table)
        table.swapped = swapped
        return True

    def missing_prefix(
        self, token_ids: Sequence[int], salt: str | None, elsewhere: Callable[[BlockKey], bool]
    ) -> list[BlockKey]:
        """What a new sequence of these tokens would find, were it not only in another place, such as on disk; empty
        without host memory to bring it to."""
        if self.offload is None or self.index is None:
            return []
        table = self.new_table(token_ids, salt)
        table.hash_blocks(self.index, self.block_size)
        return self.offload.missing(table, elsewhere)

    def indexed_blocks(self) -> list[tuple[int, BlockKey]]:
        """All blocks that can be found, those first that would be kept longest."""
        if self.index is None:
            return []
        free = self.pool.free_blocks()
        held = [block for block, count in enumerate(self.pool.ref_counts) if count]
        keys = [(block, self.index.key_of(block)) for block in (*held, *reversed(free))]
        return [(block, key) for block, key in keys if key is not None]

    def stats(self) -> CacheStats:
        """A snapshot, in constant time."""
        return CacheStats(
            num_blocks=self.num_blocks,
            num_used_blocks=self.num_blocks - self.pool.num_free,
            num_free_blocks=self.pool.num_free,
            num_indexed_blocks=0 if self.index is None else len(self.index),
            prefix_queries=self._prefix_queries,
            prefix_hits=self._prefix_hits,
            offload=NO_OFFLOAD if self.offload is None else self.offload.stats(),
        )

    def block_states(self) -> list[BlockState]:
        """Of each block, whether it is held ("owned"), else whether a prefix can find it ("cached"). Looks at all."""
        indexed = () if self.index is None else self.index
        return [
            "owned" if count else "cached" if block in indexed else "free"
            for block, count in enumerate(self.pool.ref_counts)
        ]

    def num_empty_slots(self) -> int:
        """Slots of used blocks that hold no computed token: the cache's waste. Looks at every table."""
        filled: dict[int, int] = {}
        for table in self._tables:
            num_groups = len(self.groups)
            start = table.num_computed // self.block_size * num_groups
            for i in range(start, len(table.block_ids)):
                block = table.block_ids[i]
                tokens = max(table.num_computed - i // num_groups * self.block_size, 0)
                filled[block] = max(filled.get(block, 0), tokens)
        return sum(self.block_size - tokens for tokens in filled.values())

    def check_invariants(self, planned: Mapping[BlockTable, int] = MappingProxyType({})) -> None:
        """Asserts, between steps, that no block is lost, leaked or doubly owned. For tests.

        Args:
            planned: for tables that a step in flight computes, their tokens after it.
        """
        assert not self._copies and not self._copies.sources, "a step's copies were not taken"
        holders: Counter[int] = Counter()
        for table in self._tables:
            assert table.active
            held = [block for block in table.block_ids if block != NO_BLOCK]
            assert len(set(held)) == len(held), "a block is twice in a table"
            self._check_groups(table, planned.get(table, table.num_computed))
            holders.update(held)
            self._check_digests(table, is_planned=table in planned)
        free = self.pool.free_blocks()
        for block, count in enumerate(self.pool.ref_counts):
            assert count == holders[block], f"block {block}: counted {count}, held {holders[block]}"
        unheld = [block for block in range(self.num_blocks) if not holders[block]]
        assert sorted(free) == unheld, "the free queue is not the set of blocks without holders"
        if self.index is not None:
            self.index.check_invariants()
        if self._remembered is not None:
            self._remembered.check_invariants()
        if self.offload is not None:
            self.offload.check_invariants()

    def _check_groups(self, table: BlockTable, num_planned: int) -> None:
        size, num_groups, num_computed = self.block_size, len(self.groups), table.num_computed
        num_blocks = -(-num_planned // size)
        assert len(table.block_ids) == num_blocks * num_groups, "blocks and tokens disagree"
        assert num_computed <= table.num_writable <= num_blocks * size
        for g, group in enumerate(self.groups):
            blocks = table.block_ids[g::num_groups]
            # Where no block was filled, nobody had to `commit`.
            num_left = group.first_block(num_computed // size * size)
            assert all(block == NO_BLOCK for block in blocks[:num_left]), "a block outlives the window"
            assert NO_BLOCK not in blocks[group.first_block(num_computed) :], "a block that is seen is missing"
            if num_computed < table.num_writable:
                assert self.pool.ref_counts[blocks[-1]] == 1, "a shared block is taken for writable"

    def _check_digests(self, table: BlockTable, is_planned: bool) -> None:
        if self.index is None:
            return
        num_groups, num_full = len(self.groups), table.num_computed // self.block_size
        # What comes back from host memory is indexed when it is there.
        assert table.num_indexed == num_full or (is_planned and table.num_indexed < num_full)
        for i, block in enumerate(table.block_ids):
            digest, place = self.index.digest_of(block), i // num_groups
            if digest is not None:
                assert place < num_full, "a block is indexed before it is full"
                wanted = table.digests[place] + self._search.suffixes[i % num_groups]
                assert digest == wanted, "a block is wrongly indexed"

    def _give_back(self, table: BlockTable, g: int, end: int) -> None:
        """Gives back a group's blocks before the table's block `end`, those first that its window left last."""
        block_ids, num_groups = table.block_ids, len(self.groups)
        for i in range((end - 1) * num_groups + g, -1, -num_groups):
            block = block_ids[i]
            if block == NO_BLOCK:
                break
            assert not self._copies, "a step's copies were not taken"
            block_ids[i] = NO_BLOCK
            table.usage.lose(1, self._clock_ns())
            if self.pool.drop(block):
                self._retire(block)

    def _allocate_block(self) -> int:
        block = self.pool.allocate()
        if self.index is not None:
            if self.offload is not None:
                self.offload.evict(block)
            self.index.remove(block)
        if self._watch is not None:
            self._watch.take(block)
        return block

    def _retire(self, block: int) -> None:
        self.pool.retire(block, keep=self.index is not None and block in self.index)
