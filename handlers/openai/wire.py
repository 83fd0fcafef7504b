"""What crosses the border to a host: requests in, responses out, both plain data."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic_core import to_json

from paged_backend.errors import InvalidRequestError

JSON_TYPE = "application/json"
STREAM_TYPE = "text/event-stream; charset=utf-8"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

DONE = b"data: [DONE]\n\n"
"""The end of a stream of chunks."""


_TRACE_HEADERS = ("traceparent", "tracestate")


class ByteStream(Protocol):
    """A response's body in pieces, each of them one or more whole SSE frames."""

    def __aiter__(self) -> ByteStream: ...

    async def __anext__(self) -> bytes: ...

    @property
    def error_status(self) -> int | None:
        """The status that the response would have had, where a fault ended it instead: known with its last piece."""

    async def aclose(self) -> None:
        """Ends the stream and aborts what it stands for; any number of times, begun or not."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request as the host received it.

    Attributes:
        path: "/v1/chat/completions": with a leading slash, without the host's own prefix.
        method: "GET", "POST", ...; None where the host does not tell (TorchServe).
        headers: by lower-cased name.
        body: the bytes as they came, or what the host's JSON parser made of them (a dict, a list, ...); None
            or b"" where there is none.
        on_accepted: called once, on the event loop's thread, when the engine has taken the request: from then on
            no 4xx is to come. Not called for what needs no engine.
    """

    path: str
    method: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | dict[str, Any] | list[Any] | str | None = None
    on_accepted: Callable[[], None] | None = field(default=None, compare=False, repr=False)

    @property
    def trace_headers(self) -> Mapping[str, str] | None:
        """The trace that it is part of; see `trace_headers_of`."""
        return trace_headers_of(self.headers)


def trace_headers_of(headers: Mapping[str, str]) -> Mapping[str, str] | None:
    """The trace that a request is part of, in W3C's headers; None where there is none.

    Args:
        headers: by lower-cased name.
    """
    return {name: headers[name] for name in _TRACE_HEADERS if name in headers} or None


@dataclass(slots=True)
class HttpResponse:
    """One response: `body` whole, or `stream` in pieces.

    Whoever gets a stream owns it: iterate it to its end or `aclose()` it, which aborts the engine's requests.

    Attributes:
        headers: names as they should go out, "Content-Type" always among them.
        stream: the body in pieces; None where `body` is the response.
    """

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    stream: ByteStream | None = None


def decode_json(text: bytes | str) -> Any:
    """What JSON says. Python's own parser takes `NaN`, `Infinity` and numbers that no float holds; this does not.

    Raises:
        ValueError: it is no JSON, or has such a number.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, parse_constant=_no_number, parse_float=_finite)


def decode_body(body: bytes | str) -> Any:
    """What a request's body says; None where there is none.

    Raises:
        InvalidRequestError: it is no JSON.
    """
    if not body:
        return None
    try:
        return decode_json(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"The body is not valid JSON: {error}.", param="body") from None


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON: use a number, or null")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:32]} is too large")
    return value


def encode_json(value: Any) -> bytes:
    """Compact UTF-8 JSON. A lone surrogate, which UTF-8 cannot hold, becomes "?"; an infinite number becomes null."""
    try:
        return to_json(value, inf_nan_mode="null")
    except ValueError:
        return to_json(
            json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")), inf_nan_mode="null"
        )


def named_event(kind: str, fields: Mapping[str, Any]) -> bytes:
    """One server-sent event that says its kind beside its data."""
    return b"event: " + kind.encode() + b"\ndata: " + encode_json(fields) + b"\n\n"


def json_response(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> HttpResponse:
    """A whole JSON response."""
    return HttpResponse(status, {"Content-Type": JSON_TYPE, **(headers or {})}, encode_json(value))
