"""Compiles grammars on threads of its own, and remembers what it found out of the latest ones."""

from __future__ import annotations

import logging
import threading
from typing import Protocol

from paged_backend.errors import InvalidRequestError, PagedBackendError, RequestFailedError
from paged_backend.structured.fair_jobs import FairJobs, Job
from paged_backend.structured.known_grammars import KnownGrammars, Verdict
from paged_backend.structured.matcher import Matcher
from paged_backend.structured.prover import Prover
from paged_backend.structured.source import GrammarSource
from paged_backend.structured.vocabulary import LIMITS

logger = logging.getLogger(__name__)

_NUM_THREADS = 3
_MAX_PER_TENANT = 2
"""Threads that work for one tenant at a time: one is left for the others."""
_STACK_BYTES = 64 << 20
"""Of each: several times as much as a grammar was tried out on."""
_MAX_KNOWN_BYTES = 32 << 20
_TIME_LIMIT_S = 3.0
_MASK_TIME_LIMIT_S = 0.05


class GrammarVocabulary(Protocol):
    """What compiles: `Vocabulary`."""

    def prove(self, source: GrammarSource, prover: Prover) -> str: ...

    def matcher(self, grammar: str, num_samples: int) -> Matcher: ...


class GrammarCompiler:
    """Grammars of one vocabulary. Each is tried out once while it is remembered, or while others wait for the outcome;
    then every request has matchers made of it that are its own. Safe to use from any thread.

    Args:
        vocabulary: the model's tokens.
        max_known_bytes: of the grammars, and refusals, that are remembered.
        time_limit_s: seconds that trying one out may take.
    """

    def __init__(
        self,
        vocabulary: GrammarVocabulary,
        *,
        max_known_bytes: int = _MAX_KNOWN_BYTES,
        time_limit_s: float = _TIME_LIMIT_S,
    ) -> None:
        self._vocabulary = vocabulary
        self._time_limit_s = time_limit_s
        self._jobs = FairJobs(_MAX_PER_TENANT)
        self._num_threads = 0
        self._lock = threading.Lock()  # of what follows
        self._known = KnownGrammars(max_known_bytes)
        self._proving: dict[GrammarSource, list[Job]] = {}
        """By what is being tried out, who waits for the outcome. No thread waits with them."""

    def compile(self, source: GrammarSource, num_samples: int = 1, tenant: str = "") -> Job:
        """Sets about making a request's matcher; what it waits for has it, or the reason for which it was refused, as
        an exception. Never waits itself.

        Args:
            num_samples: of the request: the matcher can be forked for all but the first.
            tenant: whose request it is. Tenants take turns.
        """
        job = Job(source, num_samples, tenant)
        if self._num_threads < _NUM_THREADS and not self._jobs.num_idle:
            self._start_thread()
        self._jobs.put(job)
        return job

    def abandon(self, job: Job) -> None:
        """Nobody waits for it any more: it is not compiled, unless that has begun."""
        if job.matcher.cancel():
            self._jobs.remove(job)

    def refuse(self, source: GrammarSource, reason: str) -> None:
        """From now on, for as long as that is remembered."""
        with self._lock:
            self._known.put(source, source.refused(reason))

    def close(self) -> None:
        """Ends the threads, each behind what it compiles now. `compile` must not be called any more."""
        self._jobs.close()

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
        while (job := self._jobs.take()) is not None:
            self._serve(job, prover)
            self._jobs.done(job)
        prover.close()

    def _serve(self, job: Job, prover: Prover) -> None:
        """Compiles what is known, or tries out what is not. What another thread is trying out has to wait for that."""
        with self._lock:
            verdict = job.verdict or self._known.get(job.source)
            if verdict is None and job.source in self._proving:
                self._proving[job.source].append(job)
                return
            if not job.matcher.set_running_or_notify_cancel():
                return
            if verdict is None:
                self._proving[job.source] = []
        try:
            if verdict is None:
                verdict = self._prove(job.source, prover)
            if isinstance(verdict, str):
                job.matcher.set_result(self._vocabulary.matcher(verdict, job.num_samples))
            else:
                job.matcher.set_exception(_refusal(job.source, verdict))
        except TimeoutError:
            reason = f"takes too long to compile for {job.num_samples} samples: simplify it, or ask for fewer."
            job.matcher.set_exception(job.source.refused(reason))
        except BaseException as error:  # a panic of llguidance is no Exception
            if not isinstance(error, PagedBackendError):
                logger.exception("a grammar could not be compiled")
            job.matcher.set_exception(RequestFailedError("The engine failed on this request: try it again."))

    def _prove(self, source: GrammarSource, prover: Prover) -> Verdict:
        verdict: Verdict | None = None
        try:
            verdict = self._vocabulary.prove(source, prover)
        except InvalidRequestError as error:
            verdict = error.with_traceback(None)
        finally:
            with self._lock:
                waiting = self._proving.pop(source)
                if verdict is not None:
                    self._known.put(source, verdict)
            for job in reversed(waiting):
                job.verdict = verdict  # none after a fault: then the next one tries again
                self._jobs.put_back(job)
        return verdict


def _refusal(source: GrammarSource, error: InvalidRequestError) -> InvalidRequestError:
    """An error of its own for one who asks. Who asked first may have said the same in another field."""
    return InvalidRequestError(source.param + str(error).removeprefix(error.param or ""), param=source.param)
