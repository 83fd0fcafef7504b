"""One sequence's view of the KV cache."""

from __future__ import annotations

from collections.abc import Sequence

from paged_backend.kv.cache_usage import CacheUsage
from paged_backend.kv.host_tier import SwappedBlocks
from paged_backend.kv.layer_group import NO_BLOCK
from paged_backend.kv.prefix_index import BlockKey, PrefixIndex, pack_tokens

ALL_TOKENS = 2**40
"""More than a sequence has."""


class BlockTable:
    """Which blocks hold a sequence's positions, and how far they are computed.

    Made by `KVCacheManager.new_table` and changed only by the manager, but for `num_computed`. It outlives a
    preemption: its blocks go, the digests of its tokens stay.

    Attributes:
        token_ids: the sequence's known tokens, lent by its owner, who only ever appends to them, or lends more that
            begin with them.
        block_ids: with G groups of layers, entry i * G + g is the block that holds positions i * block_size and after
            for group g, or NO_BLOCK where the group's window has left them behind. The list itself is lent to step
            plans.
        num_computed: tokens whose K/V are in the blocks. The owner may move it on by itself where no block is filled,
            as there is nothing to `commit`.
        num_writable: positions below this one need no `allocate` before they are written.
        root: the parent of the first block's digest; it stands for the salt.
        digests: one per full block of known tokens that was asked about so far.
        packed: those blocks' tokens as bytes.
        num_indexed: leading blocks that were offered to the index.
        active: whether the table may hold blocks (between `start` and `free`).
        swapped: its blocks in host memory, between a preemption that swapped them out and the next `start`.
        num_findable: leading tokens that it may find computed already; its owner sets it. It does not count for what
            was swapped out.
        usage: what its request has used of the cache; all of a request's tables have the same.
    """

    __slots__ = (
        "active",
        "block_ids",
        "digests",
        "num_computed",
        "num_findable",
        "num_indexed",
        "num_writable",
        "packed",
        "root",
        "swapped",
        "token_ids",
        "usage",
    )

    def __init__(self, token_ids: Sequence[int], root: bytes, usage: CacheUsage | None = None) -> None:
        self.token_ids = token_ids
        self.block_ids: list[int] = []
        self.num_computed = 0
        self.num_writable = 0
        self.root = root
        self.digests: list[bytes] = []
        self.packed: list[bytes] = []
        self.num_indexed = 0
        self.active = False
        self.swapped: SwappedBlocks | None = None
        self.num_findable = ALL_TOKENS
        self.usage = CacheUsage() if usage is None else usage

    @property
    def num_held(self) -> int:
        """Blocks that it holds."""
        return len(self.block_ids) - self.block_ids.count(NO_BLOCK)

    def key(self, i: int, suffix: bytes = b"") -> BlockKey:
        """What the i-th block of the group with this suffix is found by, once it is full; its digest must be known."""
        return BlockKey(self.digests[i] + suffix, self.digests[i - 1] if i else self.root, self.packed[i])

    def hash_blocks(self, index: PrefixIndex, size: int) -> None:
        """Hashes the full blocks, of so many known tokens each, that have no digest yet."""
        for i in range(len(self.digests), len(self.token_ids) // size):
            packed = pack_tokens(self.token_ids[i * size : (i + 1) * size])
            parent = self.digests[i - 1] if i else self.root
            self.packed.append(packed)
            self.digests.append(index.digest(parent, packed))
