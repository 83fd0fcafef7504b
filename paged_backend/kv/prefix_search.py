"""How much of a sequence's tokens is known already, where each group of layers asks for what it sees of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from paged_backend.kv.block_table import BlockTable
from paged_backend.kv.layer_group import NO_BLOCK, LayerGroup
from paged_backend.kv.prefix_index import group_suffixes

Find = Callable[[bytes, bytes, bytes], int | None]
"""Where the block of a `BlockKey` is, in whatever numbers but NO_BLOCK, or None."""


class PrefixSearch:
    """Longest prefixes, in whatever memory; only questions.

    Attributes:
        groups: of layers.
        suffixes: for each group, what follows a digest in the keys of its blocks.
        block_size: tokens in a block.
    """

    def __init__(self, groups: Sequence[LayerGroup], block_size: int) -> None:
        self.groups = tuple(groups)
        self.suffixes = group_suffixes(len(self.groups))
        self.block_size = block_size
        self._full = [g for g, group in enumerate(self.groups) if not group.window]
        self._windowed = [(g, group) for g, group in enumerate(self.groups) if group.window]

    def most_blocks(self, table: BlockTable) -> int:
        """Of each group, leading blocks of findable tokens that leave at least one token to compute."""
        return min(len(table.token_ids) - 1, table.num_findable) // self.block_size

    def longest(self, table: BlockTable, find: Find) -> list[int]:
        """What `find` gives for the blocks of the longest prefix that is known in all groups.

        Laid out like `BlockTable.block_ids`. A group with a window needs no more than the window before the prefix's
        end; of what lies before that it gets NO_BLOCK. The table's digests must be known.
        """
        length = self.most_blocks(table)
        found: dict[int, list[int]] = {}
        for g in self._full:
            found[g] = self._found(table, g, length, find)
            length = len(found[g])
        for g, _ in self._windowed:
            found[g] = self._found(table, g, length, find)
        while length:
            end = length * self.block_size
            seen = [(found[g], range(group.first_block(end), length)) for g, group in self._windowed]
            holes = [i for blocks, places in seen for i in places if blocks[i] == NO_BLOCK]
            if not holes:
                break
            length = min(holes)  # who sees a hole from here sees it from wherever the prefix is cut after it
        num_groups = len(self.groups)
        prefix = [NO_BLOCK] * (length * num_groups)
        for g, group in enumerate(self.groups):
            first = group.first_block(length * self.block_size)
            prefix[first * num_groups + g :: num_groups] = found[g][first:length]
        return prefix

    def _found(self, table: BlockTable, g: int, most: int, find: Find) -> list[int]:
        """A group's first blocks, at most so many: up to one that is not there, or with a window all, with holes."""
        found: list[int] = []
        suffix, parent = self.suffixes[g], table.root
        for digest, packed in zip(table.digests[:most], table.packed, strict=False):
            block = find(digest + suffix, parent, packed)
            if block is None:
                if not self.groups[g].window:
                    break
                block = NO_BLOCK
            found.append(block)
            parent = digest
        return found
