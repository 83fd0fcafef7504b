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

    Its automaton is its own, with all that it learns of the grammar on its way: what that costs, and at which limit it
    ends, depends on the sample's tokens alone.

    Attributes:
        is_slow: whether a mask took too long: then none is made any more.

    Args:
        automata: one for each sample of a request, at the grammar's beginning. Forks take theirs out of the list.
    """

    __slots__ = ("_automata", "_automaton", "_num_taken", "is_slow")

    def __init__(self, automata: list[LLMatcher]) -> None:
        self._automata = automata
        self._automaton = automata.pop()
        self._num_taken = 0
        self.is_slow = False

    def after(self, reasoning: ReasoningTokens | None, eos_token_ids: Collection[int]) -> Matcher:
        """What takes this one's place in a request whose samples reason first.

        Args:
            reasoning: None where they do not.
            eos_token_ids: what must not end a sample before.
        """
        if reasoning is None or reasoning.is_open is False:
            return self
        return ReasoningMatcher([*self._automata, self._automaton], reasoning, tuple(eos_token_ids))

    def fork(self) -> Matcher:
        """Another sample's. Neither has a token yet."""
        assert not self._num_taken
        return Matcher(self._automata)

    def follow(self, token_ids: Sequence[int], num_before: int) -> None:
        """Takes the tokens that it has not taken yet.

        Args:
            token_ids: all of the sample's tokens.
            num_before: how many of them come before its output.
        """
        for token_id in token_ids[num_before + self._num_taken :]:
            self._automaton.consume_token(token_id)
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
        automaton = self._automaton
        if automaton.is_error() or self.is_slow:
            return False
        start_s = time.thread_time()
        automaton.unsafe_compute_mask_ptr(address, num_bytes)
        self.is_slow = time.thread_time() - start_s > SLOW_MASK_S
        # Where nothing but EOS is left, that is for one of three reasons.
        return not self.is_slow and (
            not automaton.is_stopped() or (automaton.is_accepting() and not automaton.is_error())
        )

    @property
    def is_complete(self) -> bool:
        """Whether the tokens so far satisfy the grammar."""
        return self._automaton.is_accepting()

    @property
    def error(self) -> str:
        """What it has failed of, mostly of a grammar that is too complex; empty where it has not, or where the grammar
        itself leaves no way to go on."""
        if self.is_slow:
            return "it takes too long to tell which tokens may come next"
        reason = self._automaton.get_error().partition("\n")[0] if self._automaton.is_error() else ""
        return "" if reason.startswith("NoExtension") else reason


class ReasoningMatcher(Matcher):
    """A matcher that lets a sample reason before it follows its grammar: any token may come, but none that ends it."""

    __slots__ = ("_eos_token_ids", "_is_open", "_is_over", "_reasoning")

    def __init__(self, automata: list[LLMatcher], reasoning: ReasoningTokens, eos_token_ids: tuple[int, ...]) -> None:
        super().__init__(automata)
        self._reasoning = reasoning
        self._eos_token_ids = eos_token_ids
        self._is_open = reasoning.is_open is True
        self._is_over = False

    def fork(self) -> Matcher:
        """Another sample's. Neither has a token yet."""
        assert not self._num_taken
        return ReasoningMatcher(self._automata, self._reasoning, self._eos_token_ids)

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
