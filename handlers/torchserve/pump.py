"""Carries requests from a host that polls to the service, and their output back, one poll after another.

TorchServe calls its handler back to back while requests live: each call names every live request and takes one
reply for each. The pump turns that into the service's own shape: a task per request on an event loop of its
own. Nothing here knows TorchServe's classes, so that all of it runs in a test without a server.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import re
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from paged_backend.handlers.openai.errors import ProtocolError, error_response, late_frames
from paged_backend.handlers.openai.wire import STREAM_TYPE, HttpRequest, HttpResponse

logger = logging.getLogger(__name__)

WAIT_S = 0.025
"""Longest that one exchange waits for output: new requests are let in only between exchanges.

With an engine whose steps take longer it may be more, as each exchange costs the host a message for every live request.
"""

WAIT_OF_STEP = 0.75
LONGEST_WAIT_S = 0.1
"""Bounds of the longer wait: so much of the time between two outputs lets new requests in before the next step."""

COMMIT_AFTER_S = 0.25
"""How long an accepted request that has no output yet is withheld from the host.

The first reply commits the status line, so a refusal must come before it, and what is not accepted yet is never
committed; but the host notices that a client has gone only when it is given a reply.
"""

PROBE_EVERY_S = 0.1
"""How often the host is given an empty reply for a stream with no output: only then does it notice a client's leaving.

Each reply costs the host a message and a write, and with steps longer than WAIT_S most of them would be empty.
"""

QUIET_TICKS = 10
"""Watchdog ticks of TICK_S without an exchange, while requests live, after which their clients have gone.

Counted in ticks, not in clock time: a machine that stalls as a whole stalls the watchdog too, and no live request
is taken for an orphan.
"""

TICK_S = 0.1

_LOST = "The server's front end stopped asking for this request: send it again."
_INTERNAL = "Internal server error. The server's log says more."

_STREAM_FIELD = re.compile(rb'"stream"\s*:\s*true')


class Service(Protocol):
    """What the pump needs of `OpenAIService`."""

    async def handle(self, request: HttpRequest) -> HttpResponse:
        """Never raises; cancelling it, or closing the response's stream, aborts the engine's requests."""
        ...


@dataclass(frozen=True, slots=True)
class Reply:
    """What the host is to write for one request now.

    Attributes:
        status, headers: given with the first reply of a request, None later.
        body: bytes to write, possibly none.
        more: True: others follow. False: this ends a response that has begun. None: this is all of it.
    """

    body: bytes
    more: bool | None
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Live:
    """One request between its admission and its last reply. The pump's lock guards every field."""

    request_id: str
    wants_stream: bool
    path: str
    commit_at_s: float = math.inf
    probe_at_s: float = 0.0
    response: HttpResponse | None = None
    chunks: deque[bytes] = field(default_factory=deque)
    finished: bool = False
    committed: bool = False
    cancelled: bool = False
    task: asyncio.Task[None] | None = None


class Pump:
    """The engine side of a polling host.

    Three threads meet here: the host's (it calls `exchange`), the event loop's (it runs the service), and the
    watchdog's (it aborts what the host has forgotten). All shared state is behind one lock.
    """

    def __init__(
        self,
        service: Service,
        *,
        max_reply_bytes: int,
        wait_s: float = WAIT_S,
        commit_after_s: float = COMMIT_AFTER_S,
        quiet_s: float = QUIET_TICKS * TICK_S,
        on_tick: Callable[[], None] | None = None,
    ) -> None:
        """Starts the event loop's and the watchdog's threads.

        Args:
            max_reply_bytes: most bytes of one reply; longer ones are written in pieces.
            quiet_s: seconds without an exchange after which live requests are aborted.
            on_tick: called by the watchdog about every TICK_S; must not raise.
        """
        self._service = service
        self._max_reply_bytes = max_reply_bytes
        self._wait_s = wait_s
        self._commit_after_s = commit_after_s
        self._quiet_ticks = max(1, round(quiet_s / TICK_S))
        self._on_tick = on_tick
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._announcing = False  # the event loop's thread's alone
        self._live: dict[str, _Live] = {}
        self._in_exchange = False
        self._output_at_s = 0.0  # this and the next are the host's thread's alone
        self._pace_s = 0.0
        self._ticks_since_exchange = 0
        self._closed = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._threads = [
            threading.Thread(target=self._run_loop, name="pump-loop", daemon=True),
            threading.Thread(target=self._watch, name="pump-watchdog", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def num_live(self) -> int:
        """Requests that the host still waits for."""
        with self._lock:
            return len(self._live)

    def exchange(
        self, request_ids: Sequence[str], read_request: Callable[[int], HttpRequest | None]
    ) -> list[Reply | None]:
        """One call of the host: admits what is new, waits a little for output, gives what there is.

        Args:
            request_ids: every request that lives in the host; those of the last exchange that are missing now
                have lost their client, and are aborted.
            read_request: gives the request at a position; called for unknown ids only. None from it means that
                the host believes the request known while the pump does not.

        Returns:
            One reply per id; None means that the host must not be told anything about this request yet.
        """
        with self._lock:
            self._in_exchange = True
            known = set(self._live)
        try:
            self._abort(known.difference(request_ids))
            for position, request_id in enumerate(request_ids):
                if request_id not in known:
                    self._admit(request_id, position, read_request)
            self._wait(request_ids)
            with self._lock:
                now_s = time.monotonic()
                replies = [self._take(request_id, now_s) for request_id in request_ids]
            self._note_pace(replies, now_s, begins=not known)
            return replies
        finally:
            with self._lock:
                self._in_exchange = False
                self._ticks_since_exchange = 0

    def close(self) -> None:
        """Aborts what lives and stops both threads."""
        self._closed.set()
        with self._lock:
            request_ids = set(self._live)
        self._abort(request_ids)
        self._loop.call_soon_threadsafe(self._loop.stop)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout=5)

    # The host's thread.

    def _admit(self, request_id: str, position: int, read_request: Callable[[int], HttpRequest | None]) -> None:
        try:
            request = read_request(position)
        except Exception:
            # Whatever gets out of the host's call fails every request in it.
            logger.exception("A request could not be read.")
            live = _Live(request_id, wants_stream=False, path="")
            self._fail(live, _INTERNAL, status=500)
            with self._lock:
                self._live[request_id] = live
            return
        if request is None:
            return
        live = _Live(request_id, _wants_stream(request), request.path)
        with self._lock:
            self._live[request_id] = live
        self._loop.call_soon_threadsafe(self._start, live, request)

    def _abort(self, request_ids: set[str]) -> None:
        """Forgets requests whose clients have gone."""
        with self._lock:
            gone = [self._live.pop(request_id) for request_id in request_ids if request_id in self._live]
        for live in gone:
            self._cancel(live)

    def _cancel(self, live: _Live) -> None:
        with self._lock:
            live.cancelled = True
            task = live.task
        if task is not None:
            self._loop.call_soon_threadsafe(task.cancel)

    def _wait(self, request_ids: Sequence[str]) -> None:
        deadline_s = time.monotonic() + max(self._wait_s, min(WAIT_OF_STEP * self._pace_s, LONGEST_WAIT_S))
        while True:
            # Cleared before looking: news that comes after the look sets it again.
            self._news.clear()
            with self._lock:
                lives = [self._live.get(request_id) for request_id in request_ids]
                if any(live is None or live.chunks or live.finished for live in lives):
                    return
            remaining_s = deadline_s - time.monotonic()
            if remaining_s <= 0 or not self._news.wait(remaining_s):
                return

    def _note_pace(self, replies: Sequence[Reply | None], now_s: float, *, begins: bool) -> None:
        """Keeps the time between the last two outputs, seconds; 0 where there were none yet."""
        if begins:
            self._pace_s = 0.0
        if any(reply is not None and reply.body for reply in replies):
            self._pace_s = 0.0 if begins else now_s - self._output_at_s
            self._output_at_s = now_s

    def _take(self, request_id: str, now_s: float) -> Reply | None:
        live = self._live.get(request_id)
        if live is None:
            # The host goes on with a request that was aborted as an orphan, and nothing of it is left.
            return Reply(b"", more=False)
        body = self._take_bytes(live)
        ends = live.finished and not live.chunks
        if ends:
            assert live.response is not None, "a request ends with a response"
            del self._live[request_id]
        if live.committed:
            if not body and not ends and now_s < live.probe_at_s:
                return None
            live.probe_at_s = now_s + PROBE_EVERY_S
            return Reply(body, more=not ends)
        response = live.response
        if response is None:
            if now_s < live.commit_at_s:
                return None
            content_type = STREAM_TYPE if live.wants_stream else "application/json"
            response = HttpResponse(200, {"Content-Type": content_type})
        elif response.stream is not None and not body and not ends and now_s < live.commit_at_s:
            # An error may still take the first frame's place: let it be seen first.
            return None
        live.committed = True
        return Reply(body, more=None if ends else True, status=response.status, headers=response.headers)

    def _take_bytes(self, live: _Live) -> bytes:
        taken: list[bytes] = []
        room = self._max_reply_bytes
        while live.chunks and room > 0:
            chunk = live.chunks.popleft()
            if len(chunk) > room:
                live.chunks.appendleft(chunk[room:])
                chunk = chunk[:room]
            taken.append(chunk)
            room -= len(chunk)
        return taken[0] if len(taken) == 1 else b"".join(taken)

    # The event loop's thread.

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.run_until_complete(self._finish_tasks())
        self._loop.close()

    async def _finish_tasks(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, live: _Live, request: HttpRequest) -> None:
        with self._lock:
            if live.cancelled:
                return
            live.task = self._loop.create_task(self._serve(live, request))

    async def _serve(self, live: _Live, request: HttpRequest) -> None:
        try:
            response = await self._service.handle(dataclasses.replace(request, on_accepted=lambda: self._accept(live)))
            if response.stream is None:
                self._put(live, response.body, response=response, finished=True)
                return
            self._accept(live)
            self._put(live, b"", response=response)
            await self._copy_stream(live, response.stream)
            self._put(live, b"", finished=True)
        except asyncio.CancelledError:
            self._fail(live, _LOST, status=503)
            raise
        except Exception:
            # The service turns every fault into a response; one that gets out is a bug, and costs one request.
            logger.exception("The service raised while handling %s.", request.path)
            self._fail(live, _INTERNAL, status=500)

    def _accept(self, live: _Live) -> None:
        """Starts the clock of a request's commitment, once."""
        with self._lock:
            live.commit_at_s = min(live.commit_at_s, time.monotonic() + self._commit_after_s)

    async def _copy_stream(self, live: _Live, stream: AsyncIterator[bytes]) -> None:
        try:
            async for frame in stream:
                self._put(live, frame)
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()

    def _put(self, live: _Live, chunk: bytes, *, response: HttpResponse | None = None, finished: bool = False) -> None:
        with self._lock:
            if live.finished:
                return
            if response is not None:
                live.response = response
                if response.stream is None and live.committed and live.wants_stream:
                    chunk = late_frames(response, live.path)
            if chunk:
                live.chunks.append(chunk)
            live.finished = finished
        if (chunk or finished) and not self._announcing:
            # Told once all that is ready on the loop has run: the frames of one engine step travel together.
            self._announcing = True
            self._loop.call_soon(self._announce)

    def _announce(self) -> None:
        self._announcing = False
        self._news.set()

    def _fail(self, live: _Live, message: str, *, status: int) -> None:
        """Ends a request with an error: whole where nothing was written yet, else as the stream's last frame."""
        response = error_response(ProtocolError(message, status=status), live.path)
        with self._lock:
            if live.finished:
                return
            begun = live.committed or bool(live.chunks)
            streams = live.wants_stream if live.response is None else live.response.stream is not None
            if not begun or live.response is None:
                live.response = response
            live.chunks.append(late_frames(response, live.path) if begun and streams else response.body)
            live.finished = True
        self._news.set()

    # The watchdog's thread.

    def _watch(self) -> None:
        while not self._closed.wait(TICK_S):
            with self._lock:
                waiting = bool(self._live) and not self._in_exchange
                self._ticks_since_exchange = self._ticks_since_exchange + 1 if waiting else 0
                quiet = self._ticks_since_exchange >= self._quiet_ticks
                orphans = [live for live in self._live.values() if not live.cancelled] if quiet else []
            if orphans:
                logger.info("The host stopped asking: %d request(s) are aborted.", len(orphans))
                for live in orphans:
                    # Kept until the next exchange: should the host ask after all, it gets this error.
                    self._fail(live, _LOST, status=503)
                    self._cancel(live)
            if self._on_tick is not None:
                try:
                    self._on_tick()
                except Exception:
                    # The watchdog must outlive whatever it looks at.
                    logger.exception("The watchdog's check failed.")


def _wants_stream(request: HttpRequest) -> bool:
    """A guess at the kind of response, for a request whose response is not known in time."""
    body = request.body
    if isinstance(body, Mapping):
        return body.get("stream") is True
    if isinstance(body, str):
        body = body.encode()
    return isinstance(body, bytes) and _STREAM_FIELD.search(body) is not None
