"""The ASGI middleware between BentoML and our routes: bounded bodies, clients that leave, one shape of errors.

BentoML limits no body, does not notice a client that leaves before the first byte, and has error bodies of its own.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paged_backend.errors import InvalidRequestError, PagedBackendError
from paged_backend.handlers.access.gate import ANYBODY, Caller, Gate
from paged_backend.handlers.bento.responses import refusal, send_response
from paged_backend.handlers.openai.access_log import STATUS_CLIENT_LEFT, AccessLog, RequestRecord
from paged_backend.handlers.openai.bearer import check_key
from paged_backend.handlers.openai.errors import error_response, too_large_message
from paged_backend.handlers.openai.wire import HttpResponse, trace_headers_of

logger = logging.getLogger("bentoml.paged_backend")

_REFUSED_BODY_BYTES = 65_536
_JSON_TYPES = ("", "application/json")
"""Content types of the native API; one that is not given is taken for JSON."""


class Exchange:
    """What one request and its response share between this middleware and an API method.

    Attributes:
        caller: whose key the request carries.
        record: what the access log will say of a request of the native API; the OpenAI service keeps its own.
        trace_headers: the trace that the request is part of; see `HttpRequest`.
        error: set by an API method, before its first byte, to have this sent in place of what BentoML makes of it.
    """

    def __init__(
        self,
        caller: Caller = ANYBODY,
        record: RequestRecord | None = None,
        trace_headers: Mapping[str, str] | None = None,
    ) -> None:
        self.caller = caller
        self.record = record
        self.trace_headers = trace_headers
        self.error: PagedBackendError | None = None
        self._aborts: list[Callable[[], object]] = []

    def on_client_left(self, abort: Callable[[], object]) -> None:
        """Has `abort` called if the client leaves before the response has ended."""
        self._aborts.append(abort)

    def client_left(self) -> None:
        """Calls everything that was registered."""
        for abort in self._aborts:
            abort()

    def refuse(self, error: PagedBackendError) -> None:
        """Has the error's response sent; the first error counts."""
        if self.error is None:
            self.error = error

    def check(self) -> None:
        """Raises the error, if one is to be sent: there is nothing more to do."""
        if self.error is not None:
            raise self.error


CURRENT_EXCHANGE: ContextVar[Exchange | None] = ContextVar("CURRENT_EXCHANGE", default=None)
"""The exchange that the running code serves; None outside HTTP, as for an in-process dependency."""


class EdgeMiddleware:
    """Wraps the routes that are ours; all others (probes, Swagger, BentoML's /metrics) pass untouched.

    Args:
        owns: whether a path is ours.
        native: paths of BentoML API methods, whose errors are put into the common shape, and which ask for the key.
        max_body_bytes: larger bodies are refused with 413 while they come in, with Content-Length or without.
        body_timeout_s: bodies of which nothing more comes for so long are refused with 408.
        gate: gives the gate of the native API. (The OpenAI service asks by itself.)
        access_log: gets a line for each request of the native API, and for what does not come to the OpenAI service.
        json_only: whether the native API takes JSON alone; services of one server talk to each other in pickles.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        owns: Callable[[str], bool],
        native: frozenset[str],
        max_body_bytes: int,
        body_timeout_s: float,
        gate: Callable[[], Gate],
        access_log: AccessLog | None = None,
        json_only: Callable[[], bool] = lambda: True,
    ) -> None:
        self._app = app
        self._owns = owns
        self._native = native
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s
        self._gate = gate
        self._access_log = access_log
        self._json_only = json_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI connection."""
        if scope["type"] != "http" or not self._owns(scope["path"]):
            await self._app(scope, receive, send)
            return
        native = scope["path"] in self._native
        record = None if self._access_log is None else self._access_log.begin(scope["method"], scope["path"])
        caller = ANYBODY
        refused = None
        headers = _headers(scope)
        if native and scope["method"] != "OPTIONS":
            try:
                caller = self._check_native(headers)
            except PagedBackendError as error:
                refused = error_response(error)
        if record is not None:
            record.caller = caller.name
        if refused is None:
            try:
                body = await self._read_body(headers, receive)
            except _BodyTooLargeError:
                message = too_large_message(self._max_body_bytes)
                refused = refusal(413, message, path=scope["path"], headers={"Connection": "close"})
            except _BodyStalledError:
                message = f"Nothing more of the body came for {self._body_timeout_s:g} s (body_timeout_s)."
                refused = refusal(408, message, path=scope["path"], headers={"Connection": "close"})
            except _ClientLeftError:
                refused = HttpResponse(STATUS_CLIENT_LEFT)
        if refused is not None:
            await send_response(send, refused if record is None else record.follow(refused))
            return
        exchange = Exchange(caller, record if native else None, trace_headers_of(headers))
        await self._serve(scope, receive, send, body, exchange, native)

    async def _serve(
        self, scope: Scope, receive: Receive, send: Send, body: bytes, exchange: Exchange, native: bool
    ) -> None:
        reply = _Reply(send, exchange, native)
        left = asyncio.Event()
        body_message: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            if body_message:
                return body_message.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        token = CURRENT_EXCHANGE.set(exchange)
        try:
            handler = asyncio.ensure_future(self._app(scope, replay, reply.send))
        finally:
            CURRENT_EXCHANGE.reset(token)

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            if not reply.ended:
                # First the engine's requests, then whoever waits for them: a generator that is cancelled between
                # two of its steps is closed only when it is collected.
                exchange.client_left()
                left.set()
                handler.cancel()

        watcher = asyncio.ensure_future(watch())
        try:
            await asyncio.wait({handler})
        except asyncio.CancelledError:
            # BentoML's timeout, or uvicorn at the end of its patience.
            exchange.client_left()
            handler.cancel()
            await asyncio.wait({handler})
            raise
        finally:
            watcher.cancel()
            if exchange.record is not None and handler.done():
                if reply.started and not handler.cancelled() and handler.exception() is not None:
                    exchange.record.stream_fails(500)
                exchange.record.response_ends(STATUS_CLIENT_LEFT if left.is_set() else reply.status)
        await self._finish(handler, reply, left=left.is_set())

    async def _finish(self, handler: asyncio.Future[Any], reply: _Reply, *, left: bool) -> None:
        """Sees to it that something is sent: BentoML's TimeoutMiddleware otherwise waits on for its whole timeout."""
        if handler.cancelled():
            if not left:
                raise asyncio.CancelledError
        elif (failure := handler.exception()) is not None and not left:
            logger.error("A request failed.", exc_info=failure)
            if reply.started:
                raise failure
            await send_response(reply.send_raw, refusal(500, "The server failed to answer; its log has the details."))
        if left and not reply.started:
            await send_response(reply.send_raw, HttpResponse(STATUS_CLIENT_LEFT))

    async def _read_body(self, headers: Mapping[str, str], receive: Receive) -> bytes:
        declared = headers.get("content-length", "0")
        if declared.isascii() and declared.isdigit() and int(declared) > self._max_body_bytes:
            raise _BodyTooLargeError
        chunks: list[bytes] = []
        size = 0
        while True:
            try:
                message = await asyncio.wait_for(receive(), self._body_timeout_s)
            except asyncio.TimeoutError:
                raise _BodyStalledError from None
            if message["type"] == "http.disconnect":
                raise _ClientLeftError
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self._max_body_bytes:
                raise _BodyTooLargeError
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)

    def _check_native(self, headers: Mapping[str, str]) -> Caller:
        """Whose key the request carries."""
        caller = check_key(headers, self._gate())
        content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if self._json_only() and content_type not in _JSON_TYPES:
            # BentoML would log a traceback for its own types, and answer in a shape of its own.
            raise InvalidRequestError(
                f"The body must be JSON, not {content_type!r}: send Content-Type: application/json.", param="body"
            )
        return caller


def _headers(scope: Scope) -> dict[str, str]:
    """By lower-cased name; of those that come twice, the first."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in reversed(scope["headers"])}


class _BodyTooLargeError(Exception):
    pass


class _BodyStalledError(Exception):
    pass


class _ClientLeftError(Exception):
    pass


class _Reply:
    """The response on its way out; holds back BentoML's own error bodies and sends ours.

    Attributes:
        started: whether the client was sent anything.
        ended: whether it was sent everything.
        status: of what was sent; 500 where nothing was.
    """

    def __init__(self, send: Send, exchange: Exchange, native: bool) -> None:
        self.started = False
        self.ended = False
        self.status = 500
        self._send = send
        self._exchange = exchange
        self._native = native
        self._held_status = 0
        self._held_body = b""
        self._replaced = False

    async def send(self, message: Message) -> None:
        """What the application calls."""
        if message["type"] == "http.response.start":
            if self._exchange.error is not None:
                self._replaced = True
                await send_response(self.send_raw, error_response(self._exchange.error))
                return
            if self._native and message["status"] >= 400:
                self._held_status = message["status"]
                return
        elif message["type"] == "http.response.body":
            if self._replaced:
                return
            if self._held_status:
                self._held_body += message.get("body", b"")[:_REFUSED_BODY_BYTES]
                if not message.get("more_body", False):
                    await send_response(self.send_raw, _common_shape(self._held_status, self._held_body))
                return
        await self.send_raw(message)

    async def send_raw(self, message: Message) -> None:
        """Sends as it is."""
        self.started = True
        if message["type"] == "http.response.start":
            self.status = message["status"]
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.ended = True
        await self._send(message)


def _common_shape(status: int, body: bytes) -> HttpResponse:
    """The common error body for one of BentoML's, such as pydantic's findings; a body in that shape is kept."""
    try:
        content = json.loads(body)
    except ValueError:
        content = None
    if isinstance(content, dict):
        if isinstance(content.get("error"), dict):
            return HttpResponse(status, {"Content-Type": "application/json"}, body)
        details = content.get("detail")
        if isinstance(details, list) and details and isinstance(details[0], dict):
            where = ".".join(str(part) for part in details[0].get("loc", ()))
            message = str(details[0].get("msg", "The request is not valid."))
            return refusal(
                status,
                f"{where}: {message}" if where else message,
                param=f"body.{where}" if where else "body",
            )
    if status >= 500:
        return refusal(status, "The server failed to answer; its log has the details.")
    return refusal(status, "The request cannot be served: check the method, the content type and the body.")
