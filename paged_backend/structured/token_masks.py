"""The masks of a step's constrained rows, in memory that is kept."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

import numpy as np
from llguidance import LLExecutor, LLMatcher

from paged_backend.structured.matcher import Matcher, Words
from paged_backend.structured.vocabulary import mask_words

SLOW_MASK_S = 0.5
"""Seconds of CPU in which a mask must be there. llguidance's limits leave room for grammars that need minutes."""


class TokenMasks:
    """One row of bits for each constrained row of logits. No memory is taken before the first.

    Args:
        vocab_size: columns of the logits.
        max_rows: most rows of a step.
        num_threads: that masks are made on, where there are several.
    """

    def __init__(self, vocab_size: int, max_rows: int, num_threads: int = 1) -> None:
        self._num_words = mask_words(vocab_size)
        self._max_rows = max_rows
        self._num_threads = num_threads
        self._words: Words | None = None
        self._executor: LLExecutor | None = None

    @property
    def words(self) -> Words:
        """int32 [max_rows, ceil(vocab_size / 32)]: bit t % 32 of word t / 32 is 1 where token t may be drawn."""
        if self._words is None:
            self._words = np.zeros((self._max_rows, self._num_words), np.int32)
        return self._words

    def fill(self, samples: Sequence[tuple[Matcher, Sequence[int], int]]) -> None:
        """Writes, from row 0 on, what may come after each sample's tokens; nothing may where its grammar cannot go on.

        Args:
            samples: of each its matcher, which follows its tokens; all of these; and how many of them come before its
                output.
        """
        together: list[tuple[LLMatcher, int]] = []
        asked = []
        for row, (matcher, token_ids, num_before) in enumerate(samples):
            matcher.follow(token_ids, num_before)
            automaton = matcher.automaton
            if automaton is None:
                continue
            if matcher.is_timed or self._num_threads == 1:
                matcher.is_slow = self._ask(automaton, row) > SLOW_MASK_S
            else:
                together.append((automaton, row))
                asked.append(matcher)
        if together and self._ask_together(together) > SLOW_MASK_S:
            for matcher in asked:
                matcher.is_timed = True
        words = self.words
        for row, (matcher, _, _) in enumerate(samples):
            if not matcher.finish_mask(words[row]):
                words[row] = 0

    def _ask(self, automaton: LLMatcher, row: int) -> float:
        """Seconds of CPU that it took."""
        words = self.words
        stride = words.strides[0]
        start_s = time.thread_time()
        automaton.unsafe_compute_mask_ptr(words.ctypes.data + row * stride, stride)
        return time.thread_time() - start_s

    def _ask_together(self, automata: list[tuple[LLMatcher, int]]) -> float:
        """Seconds that it took. None of them has anything to do with another, so the order means nothing."""
        if self._executor is None:
            self._executor = LLExecutor(self._num_threads)
        words = self.words
        start_s = time.perf_counter()
        self._executor.unsafe_compute_mask_ptr(automata, words.ctypes.data, words.strides[0], len(words))
        return time.perf_counter() - start_s

    def allows_others(self, row: int, token_ids: Collection[int]) -> bool:
        """Whether a row that is filled allows any token but these."""
        rest = self.words[row].view(np.uint32).copy()
        for token_id in token_ids:
            rest[token_id // 32] &= ~np.uint32(1 << token_id % 32)
        return bool(rest.any())
