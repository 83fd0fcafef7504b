"""A model's tokens as grammars see them: the bytes of each, and which of them end a text."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from types import MappingProxyType

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from paged_backend.structured.matcher import Matcher
from paged_backend.structured.prover import Prover
from paged_backend.structured.source import GrammarSource, one_line

LIMITS: Mapping[str, int | bool] = MappingProxyType(
    {
        "max_grammar_size": 100_000,
        "initial_lexer_fuel": 1_000_000,
        "step_lexer_fuel": 20_000,
        "step_max_items": 10_000,
        "max_lexer_states": 50_000,
        "precompute_large_lexemes": False,
        "verbose_errors": False,
    }
)
"""What a grammar may cost, under llguidance's names: several times what large schemas need. They bound a token's mask
to milliseconds as a rule, but not always: hence Prover, and Matcher's own clock. Each sample has its own, so where one
ends depends on nobody else."""

SAMPLES_TIME_LIMIT_S = 10.0
"""Seconds of CPU that the automata of one request may take: what was tried out was one of them."""


class Vocabulary:
    """The tokens of a model. Making one takes a second for 100,000 of them, and holds the GIL.

    Args:
        tokenizer: the contents of a tokenizer.json.
        vocab_size: of the model; ids that the tokenizer lacks can never be drawn.
        eos_token_ids: what ends a text; one at least.

    Raises:
        ValueError: this tokenizer does not go with grammars, or not with this model; it says why.
    """

    def __init__(self, tokenizer: str, vocab_size: int, eos_token_ids: Collection[int]) -> None:
        if not eos_token_ids:
            raise ValueError("the model has no EOS token")
        self._tokenizer = LLTokenizer(tokenizer, n_vocab=vocab_size, eos_token=sorted(eos_token_ids))
        self._limits = LLParserLimits(**LIMITS)  # type: ignore[arg-type]
        self._num_words = mask_words(vocab_size)

    def prove(self, source: GrammarSource, prover: Prover) -> str:
        """The grammar in llguidance's own form: it has been tried out, and fits this vocabulary.

        Raises:
            InvalidRequestError: it is wrong, too complex, or cannot be satisfied.
        """
        grammar = prover.prove(source, *source.form_and_text(self._is_special))
        automaton = self._automaton(grammar)
        if automaton.is_error():
            raise source.refused(f"cannot be used: {one_line(automaton.get_error())}.")
        start = Matcher([automaton])
        words = np.zeros(self._num_words, np.int32)
        if not start.write_mask(words.ctypes.data, words.nbytes):
            reason = f"is too complex: {start.error}" if start.error else "cannot be satisfied by any output"
            raise source.refused(f"{reason}.")
        return grammar

    def matcher(self, grammar: str, num_samples: int, *, time_limit_s: float = SAMPLES_TIME_LIMIT_S) -> Matcher:
        """A matcher at the beginning of a grammar, which can be forked for all samples of a request but one.

        Args:
            grammar: that has been proved.
            time_limit_s: seconds of CPU after which no sample but the first gets an automaton.

        Raises:
            TimeoutError: not all of them got one.
        """
        start_s = time.thread_time()
        automata = [self._automaton(grammar)]
        while len(automata) < num_samples:
            if time.thread_time() - start_s > time_limit_s:
                raise TimeoutError
            automata.append(self._automaton(grammar))
        return Matcher(automata)

    def _automaton(self, grammar: str) -> LLMatcher:
        # Nothing of a client's grammar belongs into our log.
        return LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)

    def _is_special(self, text: str) -> bool:
        tokens = self._tokenizer.tokenize_str(text, parse_special=True)
        return len(tokens) == 1 and self._tokenizer.is_special_token(tokens[0])


def mask_words(vocab_size: int) -> int:
    """int32 words that hold a bit for each token."""
    return -(-vocab_size // 32)
