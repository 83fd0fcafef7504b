"""A snapshot of what an engine is doing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from paged_backend.executor.kv_transfer import TransferStats
from paged_backend.kv.cache_stats import BlockState


@dataclass(frozen=True, slots=True)
class SequenceBlocks:
    """One sequence that holds blocks.

    Attributes:
        request_id, index: which sample of which request; until the samples part, one stands for all.
        num_computed_tokens: whose keys and values are in the blocks.
        block_ids: in the order of its tokens.
    """

    request_id: str
    index: int
    num_computed_tokens: int
    block_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class KVMap:
    """Who has which block of the KV cache.

    Attributes:
        block_size: tokens in a block.
        states: of each block: "free", "cached" (held by nobody; a prefix can find it again), or "owned".
        num_owners: of each block, how many sequences hold it; more than one share it.
        sequences: those that hold blocks.
    """

    block_size: int
    states: Sequence[BlockState]
    num_owners: Sequence[int]
    sequences: Sequence[SequenceBlocks]

    def owners(self) -> dict[int, list[SequenceBlocks]]:
        """For each block that is owned, by whom."""
        owners: dict[int, list[SequenceBlocks]] = {}
        for sequence in self.sequences:
            for block in sequence.block_ids:
                owners.setdefault(block, []).append(sequence)
        return owners


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Taken between two steps; counters count from the engine's start.

    Attributes:
        num_running: sequences that hold blocks; a request with n samples has n once its prompt is computed.
        num_waiting: sequences that wait to be admitted, new or preempted.
        num_fetching: of these, requests whose prefix is being read from disk.
        num_waiting_tokens: their known tokens: of the prompt, and after a preemption of the output.
        num_free_blocks: blocks that can be handed out (cached ones that nobody holds included).
        num_used_blocks: blocks that a sequence holds.
        kv_cache_usage: used over all blocks, 0 to 1.
        prefix_cache_queries, prefix_cache_hits: prompt tokens looked up, and found.
        num_swapped: of those that wait, sequences whose blocks are in host memory.
        num_swaps: preemptions that swapped blocks out; num_preemptions counts them, too.
        external_prefix_cache_queries, external_prefix_cache_hits: prompt tokens that the pool did not have, and those
            of them that came from host memory or disk.
        num_host_blocks, num_used_host_blocks: that host memory holds at most, and now.
        transfer: what was moved; None without host memory for blocks.
        heartbeat_age_s: seconds since the engine's thread last finished a step while it has work; 0 when idle.
        kv_map: every block, where it was asked for.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_fetching: int = 0
    num_waiting_tokens: int = 0
    num_total_blocks: int = 0
    num_free_blocks: int = 0
    num_used_blocks: int = 0
    kv_cache_usage: float = 0.0
    num_steps: int = 0
    num_preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    num_swapped: int = 0
    num_swaps: int = 0
    external_prefix_cache_queries: int = 0
    external_prefix_cache_hits: int = 0
    num_host_blocks: int = 0
    num_used_host_blocks: int = 0
    transfer: TransferStats | None = None
    draining: bool = False
    heartbeat_age_s: float = 0.0
    kv_map: KVMap | None = None

    def emptied(self) -> EngineStats:
        """The same, with nothing that runs, waits, or holds a block."""
        return replace(
            self,
            num_running=0,
            num_waiting=0,
            num_fetching=0,
            num_waiting_tokens=0,
            num_free_blocks=self.num_total_blocks,
            num_used_blocks=0,
            kv_cache_usage=0.0,
            num_swapped=0,
        )
