"""Grammars at the engine's door, and the requests that wait there for theirs to be compiled."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass

from paged_backend.engine.request import RequestState
from paged_backend.engine.tokenizer import Tokenizer
from paged_backend.errors import InvalidRequestError, PagedBackendError
from paged_backend.sampling_params import SamplingParams
from paged_backend.structured.compiler import GrammarCompiler, refusal
from paged_backend.structured.matcher import Matcher
from paged_backend.structured.source import GrammarSource
from paged_backend.structured.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

_IDLE_WAIT_S = 0.005
"""How long an engine with nothing else to do waits for a compiler at a time."""


class GrammarDesk:
    """Knows whether this engine can serve a constraint. Safe to use from any thread.

    Attributes:
        compiler: None where it can serve none.

    Args:
        tokenizer: None where the engine runs without one.
        vocab_size: token ids are 0 .. vocab_size - 1.
        eos_token_ids: the model's.
    """

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self.compiler: GrammarCompiler | None = None
        self._lacks = "it runs without a tokenizer (skip_tokenizer_init)"
        if tokenizer is None:
            return
        try:
            self.compiler = GrammarCompiler(Vocabulary(tokenizer.to_json(), vocab_size, eos_token_ids))
        except ValueError as error:
            self._lacks = str(error)
            logger.warning("structured_outputs cannot be served here: %s", error)

    def source(self, params: SamplingParams) -> GrammarSource | None:
        """What a request's grammar is compiled from; None where it has none.

        Raises:
            InvalidRequestError: it is too long or no JSON, or this engine cannot serve any.
        """
        structure = params.structured_outputs
        if structure is None:
            return None
        if self.compiler is None:
            raise InvalidRequestError(
                f"{structure.param} cannot be served by this engine: {self._lacks}.", param=structure.param
            )
        return GrammarSource.of(structure)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A request, and the grammar that it waits for."""

    state: RequestState
    seed: int
    source: GrammarSource
    grammar: Future[Matcher]


class GrammarQueue:
    """Requests whose grammar is being compiled wait here, beside the batch, not in front of it. One thread only.

    Args:
        compiler: None where no request can have a grammar.
    """

    def __init__(self, compiler: GrammarCompiler | None) -> None:
        self._compiler = compiler
        self._waiting: dict[str, _Waiting] = {}

    @property
    def num_waiting(self) -> int:
        """Requests that wait here."""
        return len(self._waiting)

    @property
    def num_waiting_tokens(self) -> int:
        """Of their prompts."""
        return sum([len(waiting.state.request.prompt_token_ids) for waiting in self._waiting.values()])

    def begin(self, state: RequestState, seed: int) -> bool:
        """Takes a request, and its seed, to wait for its grammar; False if there is nothing to wait for."""
        source = state.request.grammar
        if source is None:
            return False
        assert self._compiler is not None
        grammar = self._compiler.compile(source)
        if grammar.done() and grammar.exception() is None:
            state.matcher = grammar.result()
            return False
        self._waiting[state.request.key] = _Waiting(state, seed, source, grammar)
        return True

    def forget(self, key: str) -> None:
        """The request is over; one that does not wait here is no error. A grammar that nobody else waits for is not
        compiled any more: who sends and aborts would fill the compiler's queue."""
        waiting = self._waiting.pop(key, None)
        if waiting is None or any(other.grammar is waiting.grammar for other in self._waiting.values()):
            return
        assert self._compiler is not None
        self._compiler.abandon(waiting.source, waiting.grammar)

    def take_ready(self, *, wait_for_one: bool) -> Iterator[tuple[RequestState, int, PagedBackendError | None]]:
        """The requests whose wait is over, with their seeds, in order of arrival; and why, if a grammar was refused.

        Args:
            wait_for_one: if none is, for a moment, as there is nothing else to do.
        """
        if wait_for_one and self._waiting:
            wait([next(iter(self._waiting.values())).grammar], _IDLE_WAIT_S)
        for key, waiting in list(self._waiting.items()):
            if waiting.grammar.done():
                del self._waiting[key]
                error = refusal(waiting.grammar, waiting.source)
                if error is None:
                    waiting.state.matcher = waiting.grammar.result()
                yield waiting.state, waiting.seed, error

    def give_up(self, state: RequestState, matcher: Matcher | None) -> None:
        """A request fails; if its grammar could not go on, that is not tried again with what there is of it."""
        source = state.request.grammar
        if source is not None and matcher is not None and matcher.error:
            assert self._compiler is not None
            self._compiler.give_up(source, matcher)

    def close(self) -> None:
        """Ends the compiler."""
        if self._compiler is not None:
            self._compiler.close()
