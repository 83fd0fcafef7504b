"""What fits into a pool of blocks, by its size alone."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

from paged_backend.kv.block_table import ALL_TOKENS
from paged_backend.kv.layer_group import LayerGroup


@dataclass(frozen=True, slots=True)
class PoolShape:
    """A pool's size, and the layers that share it.

    Attributes:
        num_blocks: blocks in the pool.
        block_size: tokens in a block.
        groups: of layers.
        max_sequence_tokens: tokens of a sequence that has the whole pool to itself.
    """

    num_blocks: int
    block_size: int
    groups: tuple[LayerGroup, ...]
    max_sequence_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        longest = bisect_right(range(ALL_TOKENS), self.num_blocks, key=self.blocks_for) - 1
        object.__setattr__(self, "max_sequence_tokens", longest)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that a sequence of so many tokens holds at most at any time."""
        return sum([group.most_blocks(num_tokens) for group in self.groups])

    def blocks_for_each(self, num_tokens: int, num_common: int, count: int) -> int:
        """Blocks that `count` sequences of so many tokens hold at most, if they share those of their first num_common.

        Sure to stay shared are full blocks, of groups that see all.
        """
        num_shared = num_common // self.block_size * sum([1 for group in self.groups if not group.window])
        return count * self.blocks_for(num_tokens) - (count - 1) * num_shared

    def slots_for_each(self, num_prompt_tokens: int, width: int) -> int:
        """Tokens that each of `width` sequences may have that are sure to share no more than their prompt."""
        if width == 1:
            return self.max_sequence_tokens
        lengths = range(self.max_sequence_tokens + 1)
        fits = bisect_right(lengths, self.num_blocks, key=lambda n: self.blocks_for_each(n, num_prompt_tokens, width))
        return fits - 1
