"""The engine's front desk: lets requests in, keeps their streams, and hands over what they gain."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol

from paged_backend.config import SchedulerConfig
from paged_backend.engine.admission import Admission
from paged_backend.engine.pace import Pace
from paged_backend.engine.request import EngineRequest, Gain
from paged_backend.engine.stats import EngineStats, KVMap
from paged_backend.engine.stream import RequestStream, Waiter
from paged_backend.errors import EngineUnavailableError, InvalidRequestError, PagedBackendError
from paged_backend.outputs import RequestStateStats

Entrant = tuple[EngineRequest, int, RequestStream]
"""A request that asks to be let in, how many output tokens each of its samples has at most, and who reads them."""

Item = EngineRequest | str | int
"""What goes to the engine: a request to add, the key of one to abort, or the number of who asks for a map of the
blocks."""

SHUT_DOWN = "The engine is shutting down, or has been: send the request to another one."
_DRAINING = "The engine is draining: it takes no more requests, send this one to another one."


class Progress(Protocol):
    """What one request gained: `engine.request.RequestState` tells it."""

    gains: list[Gain]
    error: PagedBackendError | None
    over: bool
    stats: RequestStateStats | None

    @property
    def request(self) -> EngineRequest: ...

    @property
    def num_generated(self) -> Sequence[int]: ...


class FrontDesk:
    """Stands between callers, on any thread, and what steps the engine, one thread here or in another process.

    The lock guards the table of streams and the state; what is sent under it arrives in order.

    Args:
        config: the bounds of the queue.
        pace: what the engine has measured of itself.
        stats: a first snapshot.
        send: gives an item to the engine; must not block. What it takes with it, `publish` counts as taken.
    """

    def __init__(self, config: SchedulerConfig, pace: Pace, stats: EngineStats, send: Callable[[Item], None]) -> None:
        self._admission = Admission(config, pace)
        self._send = send
        self._changed = threading.Condition()
        self._streams: dict[str, RequestStream] = {}  # by the requests' keys
        self._asked: dict[int, Future[KVMap]] = {}  # who waits for a map
        self._num_asked = 0
        self._num_sent_requests = 0  # and not yet in a snapshot
        self._num_sent_tokens = 0
        self._draining = False
        self._stopping = False
        self._dead: str | None = None
        self._stats = stats
        self._moved_s = time.monotonic()

    # -- callers, on any thread

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
            self._begin_work()
            for request, _, stream in entrants:
                self._streams[request.key] = stream
                self._num_sent_requests += 1
                self._num_sent_tokens += len(request.prompt_token_ids)
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
                heartbeat_age_s=time.monotonic() - self._moved_s if self._has_work() else 0.0,
            )

    def kv_map(self) -> KVMap:
        """Who has which block, between this step and the next: waits for the step that is being computed.

        Raises:
            EngineUnavailableError: stopped or dead.
        """
        answer: Future[KVMap] = Future()
        with self._changed:
            if self._dead is not None or self._stopping:
                raise EngineUnavailableError(self._dead or SHUT_DOWN)
            self._begin_work()
            self._num_asked += 1
            self._asked[self._num_asked] = answer
            self._send(self._num_asked)
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

    def stop(self) -> None:
        """Admits nothing more: the engine is about to be closed."""
        with self._changed:
            self._stopping = True

    def give_up(self, reason: str) -> None:
        """The engine is stuck, or dead, and will not be waited for: ends all with EngineUnavailableError. Should it go
        on after all, nobody hears of it."""
        with self._changed:
            reason = self._dead or reason
        self.close(reason, self._stats, [])

    def _has_work(self) -> bool:
        return bool(self._streams or self._asked)

    def _begin_work(self) -> None:
        if not self._has_work():  # the heartbeat counts from when there is work, not from the last step before
            self._moved_s = time.monotonic()

    def _check_admitting(self) -> None:
        if self._dead is not None:
            raise EngineUnavailableError(self._dead)
        if self._stopping:
            raise EngineUnavailableError(SHUT_DOWN)
        if self._draining:
            raise EngineUnavailableError(_DRAINING)

    def _snapshot(self) -> EngineStats:
        """The latest one, with what has come in since."""
        if not self._num_sent_requests:
            return self._stats
        return dataclasses.replace(
            self._stats,
            num_waiting=self._stats.num_waiting + self._num_sent_requests,
            num_waiting_tokens=self._stats.num_waiting_tokens + self._num_sent_tokens,
        )

    # -- the engine, on one thread

    def publish(self, stats: EngineStats, num_requests: int = 0, num_tokens: int = 0) -> None:
        """Renews the snapshot, into which so many requests, with so many tokens of prompts, have moved from what was
        sent. It is a sign of life."""
        with self._changed:
            if self._dead is not None:  # given up
                return
            self._stats = stats
            self._num_sent_requests -= num_requests
            self._num_sent_tokens -= num_tokens
            self._moved_s = time.monotonic()

    def deliver(self, states: Sequence[Progress]) -> None:
        """Hands over what requests gained; one wake-up per event loop, however many streams it reads."""
        streams = self._streams
        waiting: list[tuple[RequestStream, Waiter]] = []
        for state in states:
            key = state.request.key
            stream = streams.get(key)
            if stream is None:  # given up
                continue
            if state.error is not None:
                stream.num_generated = sum(state.num_generated)
                self.deliver_error(key, state.error)
                continue
            if state.over:
                if self._forget(key) is None:
                    continue
                stream.num_generated = sum(state.num_generated)
            waiter = stream.put(state.gains, state.over, state.stats)
            state.gains = []
            if waiter is not None:
                waiting.append((stream, waiter))
        if waiting:
            self._wake(waiting)

    def deliver_error(self, key: str, error: PagedBackendError) -> None:
        """Ends a request with an error."""
        stream = self._forget(key)
        waiter = None if stream is None else stream.put_error(error)
        if stream is not None and waiter is not None:
            self._wake([(stream, waiter)])

    def answer(self, number: int, kv_map: KVMap) -> None:
        """The map of the blocks that was asked for under this number."""
        with self._changed:
            asked = self._asked.pop(number, None)
        if asked is not None:
            asked.set_result(kv_map)

    def close(self, reason: str, stats: EngineStats, ended: Sequence[Progress]) -> None:
        """The engine has stopped, or died: ends all that is left with EngineUnavailableError.

        Args:
            reason: what callers are told from now on.
            stats: the last snapshot.
            ended: requests that the engine itself has ended.
        """
        with self._changed:
            self._dead = reason
            self._stats = stats
            self._num_sent_requests = self._num_sent_tokens = 0
            asked = list(self._asked.values())
            self._asked.clear()
        for answer in asked:
            answer.set_exception(EngineUnavailableError(reason))
        self.deliver(ended)
        for key in list(self._streams):  # never added
            self.deliver_error(key, EngineUnavailableError(reason))

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

    def _forget(self, key: str) -> RequestStream | None:
        """Frees the key before the reader learns of the end: a new request may use it at once. None where that has been
        given up."""
        with self._changed:
            stream = self._streams.pop(key, None)
            self._changed.notify_all()
        return stream


def _wake(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
