"""The masks of a step's constrained rows, in memory that is kept."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from paged_backend.structured.matcher import Matcher
from paged_backend.structured.vocabulary import mask_words

_Words = np.ndarray[Any, np.dtype[np.int32]]


class TokenMasks:
    """One row of bits for each constrained row of logits. No memory is taken before the first.

    Args:
        vocab_size: columns of the logits.
        max_rows: most rows of a step.
    """

    def __init__(self, vocab_size: int, max_rows: int) -> None:
        self._num_words = mask_words(vocab_size)
        self._max_rows = max_rows
        self._words: _Words | None = None

    @property
    def words(self) -> _Words:
        """int32 [max_rows, ceil(vocab_size / 32)]: bit t % 32 of word t / 32 is 1 where token t may be drawn."""
        if self._words is None:
            self._words = np.zeros((self._max_rows, self._num_words), np.int32)
        return self._words

    def fill(self, row: int, matcher: Matcher, token_ids: Sequence[int], num_before: int) -> None:
        """Writes what may come after a sample's tokens; nothing may where its grammar cannot go on.

        Args:
            row: of the masks.
            matcher: the sample's; it follows its tokens.
            token_ids: all of the sample's tokens.
            num_before: how many of them come before its output.
        """
        words = self.words
        matcher.follow(token_ids, num_before)
        stride = words.strides[0]
        if not matcher.write_mask(words.ctypes.data + row * stride, stride):
            words[row] = 0

    def allows_others(self, row: int, token_ids: Collection[int]) -> bool:
        """Whether a row that is filled allows any token but these."""
        rest = self.words[row].view(np.uint32).copy()
        for token_id in token_ids:
            rest[token_id // 32] &= ~np.uint32(1 << token_id % 32)
        return bool(rest.any())
