"""The engine's thread: takes requests in, steps the core, hands deltas out."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
import time
from collections import deque

from paged_backend.engine.core import EngineCore, Items
from paged_backend.engine.request import EngineRequest
from paged_backend.engine.stats import EngineStats
from paged_backend.engine.stream import RequestStream
from paged_backend.errors import EngineUnavailableError, InvalidRequestError, QueueFullError, RequestFailedError

logger = logging.getLogger(__name__)

_SHUT_DOWN = "The engine is shutting down, or has been: send the request to another one."

_FIRST_RETRY_S = 1.0
"""Retry-After before any request has ended."""


class EngineLoop:
    """Owns the core and the thread that runs it; every method may be called from any thread.

    The lock guards the inbox, the table of streams and the state; the core belongs to the thread alone.
    """

    def __init__(self, core: EngineCore, max_num_queued_reqs: int | None) -> None:
        self._core = core
        self._max_num_queued_reqs = max_num_queued_reqs
        self._changed = threading.Condition()
        self._inbox: deque[EngineRequest | str] = deque()  # a request to add, or the id of one to abort
        self._streams: dict[str, RequestStream] = {}
        self._num_inbox_requests = 0
        self._draining = False
        self._stopping = False
        self._dead: str | None = None
        self._stats = core.stats()
        self._moved_s = time.monotonic()
        self._busy = False
        self._thread = threading.Thread(target=self._run, name="paged-engine", daemon=True)
        self._thread.start()

    # -- any thread

    def submit(self, request: EngineRequest, stream: RequestStream) -> None:
        """Accepts a request; from here on its stream gets exactly one last item.

        Raises:
            EngineUnavailableError: draining, stopped or dead.
            QueueFullError: max_num_queued_reqs requests are waiting.
            InvalidRequestError: a request of that id is live.
        """
        with self._changed:
            self._check_admitting()
            if request.request_id in self._streams:
                raise InvalidRequestError(
                    f"request_id {request.request_id!r} is already in use: wait for its end or choose another.",
                    param="request_id",
                )
            self._check_queue()
            self._streams[request.request_id] = stream
            self._num_inbox_requests += 1
            self._send(request)

    def abort(self, request_id: str, stream: RequestStream | None = None) -> None:
        """Ends a request; one that is unknown or over already is no error.

        Args:
            stream: end it only if it is this one's: an id may be used again once its request is over.
        """
        with self._changed:
            live = self._streams.get(request_id)
            if live is not None and stream in (None, live):
                self._send(request_id)

    def stats(self) -> EngineStats:
        """The latest snapshot, with the heartbeat's age as of now."""
        with self._changed:
            return dataclasses.replace(
                self._stats,
                num_waiting=self._stats.num_waiting + self._num_inbox_requests,
                draining=self._draining,
                heartbeat_age_s=time.monotonic() - self._moved_s if self._busy else 0.0,
            )

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

    def _send(self, item: EngineRequest | str) -> None:
        if not self._busy:  # the heartbeat counts from when there is work, not from the last step before
            self._busy, self._moved_s = True, time.monotonic()
        self._inbox.append(item)
        self._changed.notify_all()

    def _check_admitting(self) -> None:
        if self._dead is not None:
            raise EngineUnavailableError(self._dead)
        if self._draining or self._stopping:
            raise EngineUnavailableError(_SHUT_DOWN)

    def _check_queue(self) -> None:
        bound = self._max_num_queued_reqs
        if bound is None:
            return
        waiting = self._stats.num_waiting + self._num_inbox_requests
        free = max(0, self._core.max_num_seqs - self._stats.num_running)
        if waiting >= bound + free:
            retry_after_s = self._core.mean_request_s or _FIRST_RETRY_S
            raise QueueFullError(
                f"The queue is full: {self._stats.num_running} running, {waiting} waiting, and at most {bound} "
                "(max_num_queued_reqs) may wait. Try again later.",
                retry_after_s=max(1.0, retry_after_s),
            )

    # -- the engine's thread

    def _run(self) -> None:
        try:
            while self._take_inbox():
                items = self._core.step()
                self._publish()  # before readers learn of it: who asks then must see it
                self._deliver(items)
        except Exception:
            logger.exception("the engine died")
            reason = "The engine has died of an internal error: it must be restarted."
        else:
            reason = _SHUT_DOWN
        items = self._core.end_all(reason)
        with self._changed:
            self._dead = reason
            self._busy = False
            self._stats = self._core.last_stats
            self._num_inbox_requests = 0
            ended = {request_id for request_id, _, _ in items}
            never_added = [request_id for request_id in self._streams if request_id not in ended]
        self._deliver([*items, *((request_id, EngineUnavailableError(reason), True) for request_id in never_added)])
        self._core.close()

    def _take_inbox(self) -> bool:
        """Waits for work, applies what came in; returns False when it is time to stop."""
        with self._changed:
            while not (self._inbox or self._stopping or self._core.has_work()):
                self._busy = False
                self._changed.wait()
            if self._stopping:
                return False
            if not self._inbox:
                return True
            inbox = list(self._inbox)
            self._inbox.clear()
        ended: Items = []
        for item in inbox:
            ended.extend(self._core.abort(item) if isinstance(item, str) else self._add(item))
        self._publish(num_taken=sum(not isinstance(item, str) for item in inbox))
        self._deliver(ended)
        return True

    def _add(self, request: EngineRequest) -> Items:
        try:
            self._core.add(request)
        except Exception:
            logger.exception("request %s could not be added; the others go on", request.request_id)
            return [(request.request_id, RequestFailedError("The engine failed on this request."), True)]
        return []

    def _publish(self, num_taken: int = 0) -> None:
        """Renews the snapshot; num_taken requests have moved from the inbox into it."""
        stats = self._core.stats()
        with self._changed:
            self._stats = stats
            self._num_inbox_requests -= num_taken
            self._moved_s = time.monotonic()

    def _deliver(self, items: Items) -> None:
        """Hands items to their streams; one wake-up per event loop, however many streams it reads."""
        waiting: dict[asyncio.AbstractEventLoop, list[tuple[str, asyncio.Future[None]]]] = {}
        streams = self._streams
        for request_id, item, is_last in items:
            stream = self._forget(request_id) if is_last else streams[request_id]
            waiter = stream.put(item, is_last)
            if isinstance(waiter, tuple):
                waiting.setdefault(waiter[0], []).append((request_id, waiter[1]))
            elif waiter is not None:
                waiter.set()
        for loop, waiters in waiting.items():
            try:
                loop.call_soon_threadsafe(_wake, [future for _, future in waiters])
            except RuntimeError:  # the reader's event loop has closed: nobody is left to read
                for request_id, _ in waiters:
                    self.abort(request_id)

    def _forget(self, request_id: str) -> RequestStream:
        """Frees the id before the reader learns of the end: a new request may use it at once."""
        with self._changed:
            stream = self._streams.pop(request_id)
            self._changed.notify_all()
        return stream


def _wake(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
