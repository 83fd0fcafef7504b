"""The engine's thread: takes requests in, steps the core, hands deltas out."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

from paged_backend.config import SchedulerConfig
from paged_backend.engine.admission import Admission
from paged_backend.engine.core import EngineCore
from paged_backend.engine.request import EngineRequest, RequestState
from paged_backend.engine.stats import EngineStats, KVMap
from paged_backend.engine.stream import RequestStream, Waiter
from paged_backend.errors import (
    EngineUnavailableError,
    InvalidRequestError,
    PagedBackendError,
    RequestFailedError,
)

logger = logging.getLogger(__name__)

Entrant = tuple[EngineRequest, int, RequestStream]
"""A request that asks to be let in, how many output tokens each of its samples has at most, and who reads them."""

_DRAINING = "The engine is draining: it takes no more requests, send this one to another one."
_SHUT_DOWN = "The engine is shutting down, or has been: send the request to another one."


class EngineLoop:
    """Owns the core and the thread that runs it; every method may be called from any thread.

    The lock guards the inbox, the table of streams and the state; the core belongs to the thread alone.
    """

    def __init__(self, core: EngineCore, config: SchedulerConfig) -> None:
        self._core = core
        self._admission = Admission(config, core.pace)
        self._changed = threading.Condition()
        # A request to add, the key of one to abort, or who waits for a map of the blocks.
        self._inbox: deque[EngineRequest | str | Future[KVMap]] = deque()
        self._taken: list[EngineRequest | str | Future[KVMap]] = []  # out of it; the thread's alone
        self._streams: dict[str, RequestStream] = {}  # by the requests' keys
        self._num_inbox_requests = 0
        self._num_inbox_tokens = 0
        self._draining = False
        self._stopping = False
        self._dead: str | None = None
        self._lost = False
        self._stats = core.stats()
        self._moved_s = time.monotonic()
        self._busy = False
        self._thread = threading.Thread(target=self._run, name="paged-engine", daemon=True)
        self._thread.start()

    # -- any thread

    def submit(self, entrants: Sequence[Entrant]) -> None:
        """Accepts requests, all or none; from here on each one's stream gets exactly one last item.

        Raises:
            EngineUnavailableError: draining, stopped or dead.
            AdmissionError: the queue is full, or a request cannot be over in time.
            InvalidRequestError: a request of one's id and tenant is live; or not even an idle engine would accept them.
        """
        with self._changed:
            self._check_admitting()
            keys: set[str] = set()
            for request, _, _ in entrants:
                if request.key in self._streams or request.key in keys:
                    raise InvalidRequestError(
                        f"request_id {request.request_id!r} is already in use: wait for its end or choose another.",
                        param="request_id",
                    )
                keys.add(request.key)
            self._admission.check([entrant[:2] for entrant in entrants], self._snapshot())
            for request, _, stream in entrants:
                self._streams[request.key] = stream
                self._num_inbox_requests += 1
                self._num_inbox_tokens += len(request.prompt_token_ids)
                self._send(request)

    def abort(self, request_id: str, tenant: str | None) -> None:
        """Ends a tenant's request of that id, or those of all tenants (None); unknown and ended ones are no error."""
        with self._changed:
            for key, live in self._streams.items():
                if live.request_id == request_id and tenant in (None, live.tenant):
                    self._send(key)

    def abort_stream(self, stream: RequestStream) -> bool:
        """Ends a stream's request, unless it is over (False); its id may be another one's by then."""
        with self._changed:
            if self._streams.get(stream.key) is not stream:
                return False
            self._send(stream.key)
            return True

    def stats(self) -> EngineStats:
        """The latest snapshot, with the heartbeat's age as of now."""
        with self._changed:
            return dataclasses.replace(
                self._snapshot(),
                draining=self._draining,
                heartbeat_age_s=time.monotonic() - self._moved_s if self._busy else 0.0,
            )

    def kv_map(self) -> KVMap:
        """Who has which block, between this step and the next: waits for the step that is being computed.

        Raises:
            EngineUnavailableError: stopped or dead.
        """
        answer: Future[KVMap] = Future()
        with self._changed:
            if self._dead is not None or self._stopping:
                raise EngineUnavailableError(self._dead or _SHUT_DOWN)
            self._send(answer)
        return answer.result()

    def check_alive(self) -> None:
        """Raises EngineUnavailableError when the engine is dead, stopped or draining."""
        with self._changed:
            self._check_admitting()

    def drain(self, timeout_s: float) -> bool:
        """Admits nothing more and waits for what runs; returns whether all of it ended in time."""
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: not self._streams, timeout_s)

    def shutdown(self) -> None:
        """Ends what is left with EngineUnavailableError, and the thread. Safe to call twice."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def lose(self) -> None:
        """There is nothing left to compute with: the engine dies, at once if it has nothing to do."""
        with self._changed:
            self._lost = True
            self._changed.notify_all()

    def _send(self, item: EngineRequest | str | Future[KVMap]) -> None:
        if not self._busy:  # the heartbeat counts from when there is work, not from the last step before
            self._busy, self._moved_s = True, time.monotonic()
        self._inbox.append(item)
        self._changed.notify_all()

    def _check_admitting(self) -> None:
        if self._dead is not None:
            raise EngineUnavailableError(self._dead)
        if self._stopping:
            raise EngineUnavailableError(_SHUT_DOWN)
        if self._draining:
            raise EngineUnavailableError(_DRAINING)

    def _snapshot(self) -> EngineStats:
        """The latest one, with what has come in since."""
        if not self._num_inbox_requests:
            return self._stats
        return dataclasses.replace(
            self._stats,
            num_waiting=self._stats.num_waiting + self._num_inbox_requests,
            num_waiting_tokens=self._stats.num_waiting_tokens + self._num_inbox_tokens,
        )

    # -- the engine's thread

    def _run(self) -> None:
        try:
            while self._take_inbox():
                changed = self._core.step()
                self._publish()  # before readers learn of it: who asks then must see it
                self._deliver(changed)
        except Exception:
            logger.exception("the engine died")
            reason = "The engine has died of an internal error: it must be restarted."
        else:
            reason = _SHUT_DOWN
        ended = self._core.end_all(reason)
        with self._changed:
            self._dead = reason
            self._busy = False
            self._stats = self._core.last_stats
            self._num_inbox_requests = self._num_inbox_tokens = 0
            items = [*self._taken, *self._inbox]
            self._inbox.clear()
        for item in items:
            if isinstance(item, Future) and not item.done():
                item.set_exception(EngineUnavailableError(reason))
        self._deliver(ended)
        for key in list(self._streams):  # never added
            self._deliver_error(key, EngineUnavailableError(reason))
        self._core.close(keep_cache=reason is _SHUT_DOWN)

    def _take_inbox(self) -> bool:
        """Waits for work, applies what came in; returns False when it is time to stop."""
        with self._changed:
            while not (self._inbox or self._stopping or self._lost or self._core.has_work()):
                self._busy = False
                self._changed.wait()
            if self._stopping:
                return False
            if self._lost:
                raise EngineUnavailableError("the model's other processes are gone")
            if not self._inbox:
                return True
            inbox = self._taken = list(self._inbox)
            self._inbox.clear()
        ended: list[RequestState] = []
        not_added: list[str] = []
        for item in inbox:
            if isinstance(item, str):
                ended.extend(self._core.abort(item))
            elif isinstance(item, Future):
                item.set_result(self._core.kv_map())
            elif not self._add(item):
                not_added.append(item.key)
        self._publish([item for item in inbox if isinstance(item, EngineRequest)])
        self._deliver(ended)
        for key in not_added:
            self._deliver_error(key, RequestFailedError("The engine failed on this request."))
        return True

    def _add(self, request: EngineRequest) -> bool:
        try:
            self._core.add(request)
        except Exception:
            request_id = request.request_id
            logger.exception(
                "request %s could not be added; the others go on", request_id, extra={"request_id": request_id}
            )
            return False
        return True

    def _publish(self, taken: Sequence[EngineRequest] = ()) -> None:
        """Renews the snapshot, into which these requests have moved from the inbox."""
        stats = self._core.stats()
        with self._changed:
            self._stats = stats
            self._num_inbox_requests -= len(taken)
            self._num_inbox_tokens -= sum([len(request.prompt_token_ids) for request in taken])
            self._moved_s = time.monotonic()

    def _deliver(self, states: list[RequestState]) -> None:
        """Hands over what requests gained; one wake-up per event loop, however many streams it reads."""
        streams = self._streams
        waiting: list[tuple[RequestStream, Waiter]] = []
        for state in states:
            key = state.request.key
            stream = streams[key]
            if state.error is not None:
                stream.num_generated = sum(state.num_generated)
                self._deliver_error(key, state.error)
                continue
            if state.over:
                self._forget(key)
                stream.num_generated = sum(state.num_generated)
            waiter = stream.put(state.gains, state.over, state.stats)
            state.gains = []
            if waiter is not None:
                waiting.append((stream, waiter))
        if waiting:
            self._wake(waiting)

    def _deliver_error(self, key: str, error: PagedBackendError) -> None:
        stream = self._forget(key)
        waiter = stream.put_error(error)
        if waiter is not None:
            self._wake([(stream, waiter)])

    def _wake(self, waiting: list[tuple[RequestStream, Waiter]]) -> None:
        loops: dict[asyncio.AbstractEventLoop, list[tuple[RequestStream, asyncio.Future[None]]]] = {}
        for stream, waiter in waiting:
            if isinstance(waiter, threading.Event):
                waiter.set()
            else:
                loops.setdefault(waiter[0], []).append((stream, waiter[1]))
        for loop, waiters in loops.items():
            try:
                loop.call_soon_threadsafe(_wake, [future for _, future in waiters])
            except RuntimeError:  # the reader's event loop has closed: nobody is left to read
                for stream, _ in waiters:
                    self.abort_stream(stream)

    def _forget(self, key: str) -> RequestStream:
        """Frees the key before the reader learns of the end: a new request may use it at once."""
        with self._changed:
            stream = self._streams.pop(key)
            self._changed.notify_all()
        return stream


def _wake(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
