"""What the block manager tells about the cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from paged_backend.kv.offload import OffloadStats

BlockState = Literal["free", "cached", "owned"]
"""Of a block: somebody holds it ("owned"), else a prefix can find it ("cached")."""

NO_OFFLOAD = OffloadStats()
"""Of a cache without a host tier."""


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What the cache holds and what the prefix index was worth.

    Attributes:
        num_blocks, num_used_blocks, num_free_blocks: used ones have a holder; free ones may still be found
            again.
        num_indexed_blocks: blocks, held or free, that a prefix can hit.
        prefix_queries, prefix_hits: tokens looked up on admission, and those of them found in the pool.
        offload: of the host tier; all zero without one.
    """

    num_blocks: int
    num_used_blocks: int
    num_free_blocks: int
    num_indexed_blocks: int
    prefix_queries: int
    prefix_hits: int
    offload: OffloadStats = NO_OFFLOAD
