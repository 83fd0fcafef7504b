"""Where a sample is in its grammar, and which tokens may come next."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Collection, Sequence

from llguidance import LLMatcher

from paged_backend.sampling_params import ReasoningTokens

SLOW_MASK_S = 0.5
"""Seconds of CPU in which a mask must be there. llguidance's limits leave room for grammars that need minutes."""


class Matcher:
    """One sample's place in a grammar. It follows the sample's tokens, which it is shown from the first on.

    Matchers of one grammar share what it has learnt of its own automata, so they belong to one thread, the engine's.

    Attributes:
        is_slow: whether a mask took too long: then none is made any more.
    """

    __slots__ = ("_matcher", "_num_taken", "is_slow")

    def __init__(self, matcher: LLMatcher, num_taken: int = 0) -> None:
        self._matcher = matcher
        self._num_taken = num_taken
        self.is_slow = False

    def after(self, reasoning: ReasoningTokens | None, eos_token_ids: Collection[int]) -> Matcher:
        """Another one at the same place, for a sample that reasons first.

        Args:
            reasoning: None where it does not.
            eos_token_ids: what must not end the sample before.
        """
        if reasoning is None or reasoning.is_open is False:
            return self.fork()
        return ReasoningMatcher(self._matcher.deep_copy(), reasoning, tuple(eos_token_ids))

    def fork(self) -> Matcher:
        """Another sample's, at the same place."""
        return Matcher(self._matcher.deep_copy(), self._num_taken)

    def follow(self, token_ids: Sequence[int], num_before: int) -> None:
        """Takes the tokens that it has not taken yet.

        Args:
            token_ids: all of the sample's tokens.
            num_before: how many of them come before its output.
        """
        for token_id in token_ids[num_before + self._num_taken :]:
            self._matcher.consume_token(token_id)
            self._num_taken += 1

    def write_mask(self, address: int, num_bytes: int) -> bool:
        """Writes a bit for each token of the vocabulary, 1 where it may come next; EOS may where the grammar is
        complete.

        Args:
            address: of int32 words of 32 tokens each, the lowest bit first.
            num_bytes: of the words.

        Returns:
            False where no token may come, and what is written means nothing: `error` says why, if it is known.
        """
        matcher = self._matcher
        if matcher.is_error() or self.is_slow:
            return False
        start_s = time.thread_time()
        matcher.unsafe_compute_mask_ptr(address, num_bytes)
        self.is_slow = time.thread_time() - start_s > SLOW_MASK_S
        # Where nothing but EOS is left, that is for one of three reasons.
        return not self.is_slow and (not matcher.is_stopped() or (matcher.is_accepting() and not matcher.is_error()))

    @property
    def is_complete(self) -> bool:
        """Whether the tokens so far satisfy the grammar."""
        return self._matcher.is_accepting()

    @property
    def error(self) -> str:
        """What it has failed of, mostly of a grammar that is too complex; empty where it has not, or where the grammar
        itself leaves no way to go on."""
        if self.is_slow:
            return "it takes too long to tell which tokens may come next"
        reason = self._matcher.get_error().partition("\n")[0] if self._matcher.is_error() else ""
        return "" if reason.startswith("NoExtension") else reason


class ReasoningMatcher(Matcher):
    """A matcher that lets a sample reason before it follows its grammar: any token may come, but none that ends it."""

    __slots__ = ("_eos_token_ids", "_is_open", "_is_over", "_reasoning")

    def __init__(self, matcher: LLMatcher, reasoning: ReasoningTokens, eos_token_ids: tuple[int, ...]) -> None:
        super().__init__(matcher)
        self._reasoning = reasoning
        self._eos_token_ids = eos_token_ids
        self._is_open = reasoning.is_open is True
        self._is_over = False

    def fork(self) -> Matcher:
        """Another sample's, at the same place."""
        other = ReasoningMatcher(self._matcher.deep_copy(), self._reasoning, self._eos_token_ids)
        other._num_taken, other._is_open, other._is_over = self._num_taken, self._is_open, self._is_over
        return other

    def follow(self, token_ids: Sequence[int], num_before: int) -> None:
        """Takes the tokens that it has not taken yet; the grammar takes those after the reasoning."""
        while not self._is_over and num_before + self._num_taken < len(token_ids):
            token_id = token_ids[num_before + self._num_taken]
            if self._is_open:
                self._num_taken += 1
                self._is_over = token_id == self._reasoning.end_id
            elif token_id == self._reasoning.begin_id:
                self._num_taken += 1
                self._is_open = True
            else:
                self._is_over = True  # it does not reason: this is the grammar's first token
        super().follow(token_ids, num_before)

    def write_mask(self, address: int, num_bytes: int) -> bool:
        """As `Matcher.write_mask`. While the sample reasons, all but EOS may come; at first, also what opens it."""
        words = (ctypes.c_uint32 * (num_bytes // 4)).from_address(address)
        if self._is_open and not self._is_over:
            ctypes.memset(address, 0xFF, num_bytes)
            for token_id in self._eos_token_ids:
                words[token_id // 32] &= ~(1 << token_id % 32) & 0xFFFFFFFF
            return True
        is_possible = super().write_mask(address, num_bytes)
        if is_possible and not self._is_over:
            words[self._reasoning.begin_id // 32] |= 1 << self._reasoning.begin_id % 32
        return is_possible

    @property
    def is_complete(self) -> bool:
        """Whether the tokens so far satisfy the grammar."""
        return (self._is_over or not self._is_open) and super().is_complete
