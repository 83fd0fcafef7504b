"""Compiles grammars on threads of its own, and keeps the latest ones."""

from __future__ import annotations

import logging
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError

from paged_backend.errors import InvalidRequestError, PagedBackendError, RequestFailedError
from paged_backend.structured.matcher import Matcher
from paged_backend.structured.source import GrammarSource

logger = logging.getLogger(__name__)

_NUM_THREADS = 2
_MAX_ENTRIES = 64
_TIME_LIMIT_S = 5.0


class GrammarCompiler:
    """Grammars of one vocabulary, compiled once each while they are among the latest that were asked for.

    A grammar that takes too long is refused. Its thread cannot be stopped: another takes its place, and it ends when
    it is done. Refusals are kept like grammars: asking again costs nothing.

    Args:
        compile_source: from a source to a matcher at its beginning; raises InvalidRequestError.
        max_entries: grammars that are kept.
        time_limit_s: seconds that compiling one may take.
    """

    def __init__(
        self,
        compile_source: Callable[[GrammarSource], Matcher],
        *,
        max_entries: int = _MAX_ENTRIES,
        time_limit_s: float = _TIME_LIMIT_S,
    ) -> None:
        self._compile_source = compile_source
        self._max_entries = max_entries
        self._time_limit_s = time_limit_s
        self._lock = threading.Lock()
        self._entries: OrderedDict[GrammarSource, Future[Matcher]] = OrderedDict()
        self._jobs: queue.SimpleQueue[tuple[GrammarSource, Future[Matcher]] | None] = queue.SimpleQueue()
        self._num_threads = 0
        self._num_unfinished = 0
        self._closed = False

    def compile(self, source: GrammarSource) -> Future[Matcher]:
        """The grammar's matcher at its beginning, to be forked, never moved; or InvalidRequestError. Never waits."""
        with self._lock:
            entry = self._entries.get(source)
            if entry is not None:
                self._entries.move_to_end(source)
                return entry
            entry = self._entries[source] = Future()
            if len(self._entries) > self._max_entries:
                self._entries.popitem(last=False)  # one still being compiled ends for who waits for it
            self._num_unfinished += 1
            self._jobs.put((source, entry))
            if self._num_threads < min(_NUM_THREADS, self._num_unfinished):
                self._start_thread()
        return entry

    def forget(self, source: GrammarSource) -> None:
        """The next one who asks for it gets it compiled anew; matchers that there are go on."""
        with self._lock:
            self._entries.pop(source, None)

    def close(self) -> None:
        """Ends the threads once they have nothing to do. `compile` must not be called any more."""
        with self._lock:
            self._closed = True
            for _ in range(self._num_threads):
                self._jobs.put(None)

    def _start_thread(self) -> None:
        self._num_threads += 1
        threading.Thread(target=self._work, name="paged-grammar", daemon=True).start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not self._run(*job):
                return

    def _run(self, source: GrammarSource, entry: Future[Matcher]) -> bool:
        """Compiles one; False where that took so long that another thread has taken this one's place."""
        timer = threading.Timer(self._time_limit_s, self._give_up, (source, entry))
        timer.daemon = True
        timer.start()
        try:
            matcher = self._compile_source(source)
        except Exception as error:
            if not isinstance(error, PagedBackendError):
                logger.exception("a grammar could not be compiled")
                self.forget(source)
                error = RequestFailedError("The engine failed on this request: try it again.")
            return self._settle(entry, lambda: entry.set_exception(error))
        finally:
            timer.cancel()
        return self._settle(entry, lambda: entry.set_result(matcher))

    def _give_up(self, source: GrammarSource, entry: Future[Matcher]) -> None:
        error = source.refused(f"takes more than {self._time_limit_s:g} s to compile: simplify it.")
        if self._settle(entry, lambda: entry.set_exception(error)):
            with self._lock:
                self._num_threads -= 1
                if not self._closed:
                    self._start_thread()

    def _settle(self, entry: Future[Matcher], settle: Callable[[], None]) -> bool:
        """Whether it was the first to do so."""
        try:
            settle()
        except InvalidStateError:
            return False
        with self._lock:
            self._num_unfinished -= 1
        return True


def refusal(entry: Future[Matcher]) -> PagedBackendError | None:
    """Why a grammar that is done was refused; None if it was not. A new one each time: it is raised elsewhere."""
    error = entry.exception()
    if isinstance(error, InvalidRequestError):
        return InvalidRequestError(str(error), param=error.param)
    assert error is None or isinstance(error, PagedBackendError)
    return error
