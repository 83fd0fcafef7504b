"""Layers that see equally far back keep a sequence's tokens for equally long: they share a block table."""

from __future__ import annotations

from dataclasses import dataclass

NO_BLOCK = -1
"""In a block table: the group needs no tokens of these positions any more, and holds none."""


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """What a group of layers needs of a sequence.

    Attributes:
        window: tokens that a position sees, itself included, at least 2; 0 means all. (With one, a prefix that ends
            with a block would need no block at all, and whatever is asked for would be found.)
        block_size: tokens in a block.
        max_chunk: most tokens of a sequence that one step computes.
    """

    window: int
    block_size: int
    max_chunk: int

    def __post_init__(self) -> None:
        assert self.window != 1 and min(self.window + 1, self.block_size, self.max_chunk) >= 1, self

    def first_block(self, position: int) -> int:
        """The first block that this position, or one after it, sees."""
        return max(position - self.window + 1, 0) // self.block_size if self.window else 0

    def most_blocks(self, num_tokens: int) -> int:
        """Blocks that a sequence of so many tokens holds at most at any time."""
        whole = -(-num_tokens // self.block_size)
        if not self.window:
            return whole
        # A step's tokens and what the first of them sees, wherever in a block they begin.
        in_use = self.window - 1 + self.max_chunk
        return min(whole, -(-(in_use - 1) // self.block_size) + 1)
