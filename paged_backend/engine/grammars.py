"""Grammars at the engine's door, and the requests that wait there for theirs to be compiled."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import wait
from dataclasses import dataclass

from paged_backend.engine.request import RequestState
from paged_backend.engine.tokenizer import Tokenizer
from paged_backend.errors import InvalidRequestError, PagedBackendError
from paged_backend.sampling_params import SamplingParams
from paged_backend.structured.compiler import GrammarCompiler
from paged_backend.structured.fair_jobs import Job
from paged_backend.structured.matcher import Matcher
from paged_backend.structured.source import GrammarSource
from paged_backend.structured.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

_IDLE_WAIT_S = 0.005
"""How long an engine with nothing else to do waits for a compiler at a time."""


class GrammarDesk:
    """Knows whether this engine can serve a constraint. Safe to use from any thread.

    Args:
        lacks: why it can serve none; None where it can.
    """

    def __init__(self, lacks: str | None) -> None:
        self._lacks = lacks

    def source(self, params: SamplingParams) -> GrammarSource | None:
        """What a request's grammar is compiled from; None where it has none.

        Raises:
            InvalidRequestError: it is too long or no JSON, or this engine cannot serve any.
        """
        structure = params.structured_outputs
        if structure is None:
            return None
        if self._lacks is not None:
            raise InvalidRequestError(
                f"{structure.param} cannot be served by this engine: {self._lacks}.", param=structure.param
            )
        return GrammarSource.of(structure)


def make_compiler(
    tokenizer: Tokenizer | None, vocab_size: int, eos_token_ids: frozenset[int]
) -> tuple[GrammarCompiler | None, str | None]:
    """What compiles an engine's grammars; None, and why, where it can serve none.

    Args:
        tokenizer: None where the engine runs without one.
        vocab_size: token ids are 0 .. vocab_size - 1.
        eos_token_ids: the model's.
    """
    if tokenizer is None:
        return None, "it runs without a tokenizer (skip_tokenizer_init)"
    try:
        return GrammarCompiler(Vocabulary(tokenizer.to_json(), vocab_size, eos_token_ids)), None
    except ValueError as error:
        logger.warning("structured_outputs cannot be served here: %s", error)
        return None, str(error)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A request, and what compiles its grammar."""

    state: RequestState
    seed: int
    job: Job


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
        request = state.request
        if request.grammar is None:
            return False
        assert self._compiler is not None
        job = self._compiler.compile(request.grammar, request.params.num_sequences, request.tenant)
        self._waiting[request.key] = _Waiting(state, seed, job)
        return True

    def forget(self, key: str) -> None:
        """The request is over; one that does not wait here is no error. Its grammar is not compiled any more: who sends
        and aborts would fill the compiler's queue."""
        waiting = self._waiting.pop(key, None)
        if waiting is not None:
            assert self._compiler is not None
            self._compiler.abandon(waiting.job)

    def take_ready(self, *, wait_for_one: bool) -> Iterator[tuple[RequestState, int, PagedBackendError | None]]:
        """The requests whose wait is over, with their seeds, in order of arrival; and why, if a grammar was refused.

        Args:
            wait_for_one: if none is, for a moment, as there is nothing else to do.
        """
        if wait_for_one and self._waiting:
            wait([next(iter(self._waiting.values())).job.matcher], _IDLE_WAIT_S)
        for key, waiting in list(self._waiting.items()):
            matcher = waiting.job.matcher
            if matcher.done():
                del self._waiting[key]
                error = matcher.exception()
                assert error is None or isinstance(error, PagedBackendError)
                if error is None:
                    waiting.state.matcher = matcher.result()
                yield waiting.state, waiting.seed, error

    def give_up(self, state: RequestState, matcher: Matcher | None) -> None:
        """A request fails. If its grammar took too long, no other one may try it."""
        source = state.request.grammar
        if source is not None and matcher is not None and matcher.is_slow:
            assert self._compiler is not None
            self._compiler.refuse(source, f"is too complex: {matcher.error}.")

    def close(self) -> None:
        """Ends the compiler."""
        if self._compiler is not None:
            self._compiler.close()
