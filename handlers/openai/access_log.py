"""The access log: one line for each request, when it is over, with the prompt only where the operator wants it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from paged_backend.handlers.openai.wire import ByteStream, HttpResponse

LOGGER_NAME = "paged_backend.access"

FIELDS_ATTRIBUTE = "access_fields"
"""Where a log record has the line's fields apart."""

STATUS_CLIENT_LEFT = 499
"""nginx's number for a client that did not wait for the answer."""

_PROMPT_FIELDS = ("prompt", "messages", "input", "prompt_token_ids")
_MAX_PROMPT_CHARACTERS = 10_000


class AccessLog:
    """Begins a record for each request, which writes its own line.

    Args:
        prompts: whether prompts are in it.
        write: takes the lines, each with its fields; None means the logger "paged_backend.access".
    """

    def __init__(
        self,
        *,
        prompts: bool = False,
        write: Callable[[str, Mapping[str, Any]], None] | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.prompts = prompts
        self._write = write or _log
        self._clock_s = clock_s

    def begin(self, method: str | None, path: str) -> RequestRecord:
        """The record of a request that has just come in, on the event loop that serves it."""
        return RequestRecord(self._write, self._clock_s, method, path, prompts=self.prompts)


class RequestRecord:
    """What is known of one request; it is written when the response has ended and the engine has, too.

    Attributes:
        request_id: the response's id; None where it did not come so far.
        caller: the key's name; None where none was asked for or given.
    """

    def __init__(
        self,
        write: Callable[[str, Mapping[str, Any]], None],
        clock_s: Callable[[], float],
        method: str | None,
        path: str,
        *,
        prompts: bool,
    ) -> None:
        self.request_id: str | None = None
        self.caller: str | None = None
        self._write = write
        self._clock_s = clock_s
        self._method = method
        self._path = path
        self._keeps_prompt = prompts
        self._prompt: str | None = None
        self._begun_s = clock_s()
        self._first_s: float | None = None
        self._status: int | None = None
        self._num_prompt_tokens = 0
        self._num_output_tokens = 0
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._num_pending = 1  # the response, and whatever the engine runs for it

    def keep_prompt(self, body: Mapping[str, Any]) -> None:
        """Notes a body's prompt, where prompts are logged."""
        if self._keeps_prompt:
            given = next((body[name] for name in _PROMPT_FIELDS if body.get(name) is not None), None)
            self._prompt = json.dumps(given, default=str)[:_MAX_PROMPT_CHARACTERS]

    def engine_begins(self, num_requests: int, num_prompt_tokens: int) -> None:
        """The engine has accepted requests with so many tokens in their prompts."""
        with self._lock:
            self._num_pending += num_requests
            self._num_prompt_tokens += num_prompt_tokens

    def engine_ends(self, num_output_tokens: int) -> None:
        """One of them is over, and generated so many. For any thread."""
        if self._end(num_output_tokens):
            # A line may take its time: it is none of an engine's thread's affairs.
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the process about to end
                self._loop.call_soon_threadsafe(self._write_line)

    def follow(self, response: HttpResponse) -> HttpResponse:
        """The response, on whose end the record is told of it."""
        if response.stream is None:
            self.response_ends(response.status)
        else:
            response.stream = _FollowedStream(response.stream, self, response.status)
        return response

    def first_piece(self) -> None:
        """The response has begun."""
        if self._first_s is None:
            self._first_s = self._clock_s()

    def response_ends(self, status: int) -> None:
        """The response has ended, or its client has gone; the first call counts."""
        if self._status is None:
            self._status = status
            self.first_piece()
            if self._end():
                self._write_line()

    def _end(self, num_output_tokens: int = 0) -> bool:
        """Whether that was the last thing to wait for."""
        with self._lock:
            self._num_output_tokens += num_output_tokens
            self._num_pending -= 1
            return not self._num_pending

    def _write_line(self) -> None:
        fields = self._fields()
        self._write(" ".join(f"{name}={_plain(_text(value))}" for name, value in fields.items()), fields)

    def _fields(self) -> dict[str, Any]:
        now_s = self._clock_s()
        fields: dict[str, Any] = {
            "request_id": self.request_id,
            "key": self.caller,
            "method": self._method,
            "path": self._path,
            "status": self._status,
            "prompt_tokens": self._num_prompt_tokens,
            "output_tokens": self._num_output_tokens,
            "first_s": round((self._first_s or now_s) - self._begun_s, 6),
            "total_s": round(now_s - self._begun_s, 6),
        }
        if self._prompt is not None:
            fields["prompt"] = self._prompt
        return fields


class _FollowedStream:
    """A response's stream whose beginning and end its record learns."""

    def __init__(self, stream: ByteStream, record: RequestRecord, status: int) -> None:
        self._stream = stream
        self._record = record
        self._status = status

    def __aiter__(self) -> _FollowedStream:
        return self

    async def __anext__(self) -> bytes:
        try:
            piece = await self._stream.__anext__()
        except StopAsyncIteration:
            self._record.response_ends(self._status)
            raise
        except BaseException:
            self._record.response_ends(STATUS_CLIENT_LEFT)
            raise
        self._record.first_piece()
        return piece

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            self._record.response_ends(STATUS_CLIENT_LEFT)


def _log(line: str, fields: Mapping[str, Any]) -> None:
    logging.getLogger(LOGGER_NAME).info(line, extra={FIELDS_ATTRIBUTE: fields})


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _plain(text: str) -> str:
    """A value that takes no other's place: what has spaces, quotes or line breaks in it is quoted as JSON."""
    is_plain = text.isascii() and text.isprintable() and not any(mark in text for mark in ' "=\\')
    return text if is_plain and text else json.dumps(text)
