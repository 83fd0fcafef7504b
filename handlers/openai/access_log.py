"""The access log: one line for each request, when it is over, with the prompt only where the operator wants it."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from paged_backend.handlers.openai.errors import error_status
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
        self._error: int | None = None
        self._num_prompt_tokens = 0
        self._num_output_tokens = 0
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._num_pending = 1  # the response, and whatever the engine runs for it

    def keep_prompt(self, body: Mapping[str, Any]) -> None:
        """Notes a body's prompt, where prompts are logged."""
        if self._keeps_prompt:
            given = next((body[name] for name in _PROMPT_FIELDS if body.get(name) is not None), None)
            self._prompt = beginning_of_json(given, _MAX_PROMPT_CHARACTERS)

    def engine_begins(self, num_requests: int, num_prompt_tokens: int) -> None:
        """The engine has accepted requests with so many tokens in their prompts."""
        with self._lock:
            self._num_pending += num_requests
            self._num_prompt_tokens += num_prompt_tokens

    def engine_ends(self, num_output_tokens: int) -> None:
        """One of them is over, and generated so many. For any thread."""
        if self._end(num_output_tokens):
            self._have_line_written()

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

    def stream_fails(self, status: int) -> None:
        """What is left of a response that has begun is an error, which would have had this status."""
        self._error = status

    def response_ends(self, status: int) -> None:
        """The response has ended, or its client has gone; the first call counts."""
        if self._has_ended(status):
            self._write_line()

    def response_is_dropped(self) -> None:
        """Nobody will read the response, or close it. For any thread, wherever it collects garbage."""
        if self._has_ended(STATUS_CLIENT_LEFT):
            self._have_line_written()

    def _has_ended(self, status: int) -> bool:
        """Whether the response's end was the last thing to wait for."""
        if self._status is not None:
            return False
        self._status = status
        self.first_piece()
        return self._end()

    def _end(self, num_output_tokens: int = 0) -> bool:
        """Whether that was the last thing to wait for."""
        with self._lock:
            self._num_output_tokens += num_output_tokens
            self._num_pending -= 1
            return not self._num_pending

    def _have_line_written(self) -> None:
        """By the event loop: a line may take its time, which is none of an engine's thread's affairs."""
        try:
            self._loop.call_soon_threadsafe(self._write_line)
        except RuntimeError:  # the loop is closed, and the process about to end
            self._write_line()

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
            **({} if self._error is None else {"error": self._error}),
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
            if self._stream.error_status is not None:
                self._record.stream_fails(self._stream.error_status)
            self._record.response_ends(self._status)
            raise
        except Exception as error:
            self._record.stream_fails(error_status(error))
            self._record.response_ends(self._status)
            raise
        except BaseException:
            self._record.response_ends(STATUS_CLIENT_LEFT)
            raise
        self._record.first_piece()
        return piece

    @property
    def error_status(self) -> int | None:
        return self._stream.error_status

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            self._record.response_ends(STATUS_CLIENT_LEFT)

    def __del__(self) -> None:
        self._record.response_is_dropped()


def beginning_of_json(value: Any, most: int) -> str:
    """The first characters of a value's JSON, `most` of them at most. What comes after them is not looked at."""
    beginning = _Beginning(most)
    beginning.write(value)
    return "".join(beginning.pieces)[:most]


class _Beginning:
    """Writes JSON until there is enough of it; a text that is cut ends behind what is kept."""

    def __init__(self, room: int) -> None:
        self.pieces: list[str] = []
        self._room = room  # characters that are still wanted

    def write(self, value: Any) -> None:
        if isinstance(value, str):
            self._put(json.dumps(value[: self._room]))
        elif isinstance(value, Mapping):
            self._put("{")
            for number, (name, inner) in enumerate(value.items()):
                if not self._room:
                    return
                self._put(", " if number else "")
                self.write(str(name))
                self._put(": ")
                self.write(inner)
            self._put("}")
        elif isinstance(value, (list, tuple)):
            self._put("[")
            for number, inner in enumerate(value):
                if not self._room:
                    return
                self._put(", " if number else "")
                self.write(inner)
            self._put("]")
        else:
            self._put(json.dumps(value, default=str))

    def _put(self, text: str) -> None:
        self.pieces.append(text)
        self._room = max(0, self._room - len(text))


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
