"""Compiles grammars on threads of its own, and keeps the latest ones."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import Protocol

from paged_backend.errors import InvalidRequestError, PagedBackendError, RequestFailedError
from paged_backend.structured.matcher import Matcher
from paged_backend.structured.prover import Prover
from paged_backend.structured.source import GrammarSource
from paged_backend.structured.vocabulary import LIMITS

logger = logging.getLogger(__name__)

_NUM_THREADS = 2
_STACK_BYTES = 64 << 20
"""Of each: several times as much as a grammar was tried out on."""
_MAX_ENTRIES = 64
_TIME_LIMIT_S = 3.0
_MASK_TIME_LIMIT_S = 0.05


class GrammarVocabulary(Protocol):
    """What compiles: `Vocabulary`."""

    def compile(self, source: GrammarSource, prover: Prover) -> Matcher: ...


class GrammarCompiler:
    """Grammars of one vocabulary, compiled once each while they are among the latest that were asked for.

    Refusals are kept like grammars: asking again costs nothing.

    Args:
        vocabulary: the model's tokens.
        max_entries: grammars that are kept.
        time_limit_s: seconds that compiling one may take.
    """

    def __init__(
        self, vocabulary: GrammarVocabulary, *, max_entries: int = _MAX_ENTRIES, time_limit_s: float = _TIME_LIMIT_S
    ) -> None:
        self._vocabulary = vocabulary
        self._max_entries = max_entries
        self._time_limit_s = time_limit_s
        self._lock = threading.Lock()
        self._entries: OrderedDict[GrammarSource, Future[Matcher]] = OrderedDict()
        self._jobs: queue.SimpleQueue[tuple[GrammarSource, Future[Matcher]] | None] = queue.SimpleQueue()
        self._num_threads = 0
        self._num_unfinished = 0

    def compile(self, source: GrammarSource) -> Future[Matcher]:
        """The grammar's matcher at its beginning, to be forked, never moved; or what `refusal` tells. Never waits."""
        with self._lock:
            entry = self._entries.get(source)
            if entry is not None:
                self._entries.move_to_end(source)
                return entry
            if self._num_threads < min(_NUM_THREADS, self._num_unfinished + 1):
                self._start_thread()
            entry = self._entries[source] = Future()
            if len(self._entries) > self._max_entries:
                self._entries.popitem(last=False)  # who waits for it has it still
            self._num_unfinished += 1
            self._jobs.put((source, entry))
        return entry

    def abandon(self, source: GrammarSource, entry: Future[Matcher]) -> None:
        """Nobody waits for what `compile` gave any more: it is not compiled, unless that has begun."""
        with self._lock:
            if entry.cancel() and self._entries.get(source) is entry:
                del self._entries[source]

    def give_up(self, source: GrammarSource, matcher: Matcher) -> None:
        """Takes note of a grammar that a matcher could not go on with: it is compiled anew for whoever asks for it
        next, as those before may have filled it up; but one whose masks take too long is refused."""
        with self._lock:
            self._entries.pop(source, None)
            if matcher.is_slow:
                self._entries[source] = Future()
                self._entries[source].set_exception(source.refused(f"is too complex: {matcher.error}."))

    def _forget(self, source: GrammarSource) -> None:
        with self._lock:
            self._entries.pop(source, None)

    def close(self) -> None:
        """Ends the threads, each behind what it compiles now. `compile` must not be called any more."""
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is not None:
                    job[1].cancel()
        for _ in range(self._num_threads):
            self._jobs.put(None)

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, name="paged-grammar", daemon=True)
        before = threading.stack_size(_STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
        self._num_threads += 1

    def _work(self) -> None:
        prover = Prover(LIMITS, self._time_limit_s, _MASK_TIME_LIMIT_S)
        while (job := self._jobs.get()) is not None:
            source, entry = job
            if entry.set_running_or_notify_cancel():
                self._compile(source, entry, prover)
            with self._lock:
                self._num_unfinished -= 1
        prover.close()

    def _compile(self, source: GrammarSource, entry: Future[Matcher], prover: Prover) -> None:
        try:
            matcher = self._vocabulary.compile(source, prover)
        except InvalidRequestError as error:
            entry.set_exception(error)
        except BaseException as error:  # a panic of llguidance is no Exception
            if not isinstance(error, PagedBackendError):
                logger.exception("a grammar could not be compiled")
            self._forget(source)
            entry.set_exception(RequestFailedError("The engine failed on this request: try it again."))
        else:
            entry.set_result(matcher)


def refusal(entry: Future[Matcher], source: GrammarSource) -> PagedBackendError | None:
    """Why a grammar that is done was refused; None if it was not. A new one each time, as it is raised elsewhere.

    Args:
        source: the asker's own. Who asked first may have said the same in another field.
    """
    error = entry.exception()
    if isinstance(error, InvalidRequestError):
        return InvalidRequestError(source.param + str(error).removeprefix(error.param or ""), param=source.param)
    assert error is None or isinstance(error, PagedBackendError)
    return error
