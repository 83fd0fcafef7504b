"""Responses as plain data, sent over ASGI."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import Send

from paged_backend.errors import InvalidRequestError
from paged_backend.handlers.openai.errors import ProtocolError, error_response
from paged_backend.handlers.openai.wire import HttpResponse

_STATUSES = frozenset({401, 404, 405, 408, 413, 500})


def refusal(
    status: int,
    message: str,
    *,
    path: str = "",
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> HttpResponse:
    """An error that this host found by itself, in the common shape.

    Args:
        path: the request's; some have a shape of their own.
        status: one that the common shape has no type for becomes 400, or 500.
    """
    if status not in _STATUSES:
        if status < 500:
            return error_response(InvalidRequestError(message, param=param), path)
        status = 500
    return error_response(ProtocolError(message, status=status, headers=headers), path)


async def send_response(send: Send, response: HttpResponse) -> None:
    """Sends a response; a stream is closed whatever happens, which aborts what still runs for it."""
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.items()]
    stream = response.stream
    if stream is None:
        headers.append((b"content-length", str(len(response.body)).encode()))
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": response.body, "more_body": False})
        return
    try:
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        async for chunk in stream:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    finally:
        await stream.aclose()
