"""Errors on the wire: every one has OpenAI's body, whatever went wrong and on whichever host."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from paged_backend.errors import (
    AdmissionError,
    EngineUnavailableError,
    InvalidRequestError,
    NotFoundError,
    PagedBackendError,
)
from paged_backend.handlers.openai.wire import DONE, HttpResponse, json_response

_logger = logging.getLogger(__name__)

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the response that the current task makes, for the log."""

_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    408: "RequestTimeoutError",
    413: "ContentTooLargeError",
    429: "TooManyRequestsError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}


_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_ANTHROPIC_PATH = "/v1/messages"


class ProtocolError(PagedBackendError):
    """A request that fails before it means anything: no key, no such route, too large.

    Attributes:
        status: the HTTP status.
        headers: headers that the response must carry.
    """

    def __init__(self, message: str, *, status: int, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


def too_large_message(max_body_bytes: int) -> str:
    """What a larger body is told, whoever notices first: the host as it reads, or the service that has it whole."""
    return f"The request's body is larger than {max_body_bytes} bytes (max_body_bytes)."


def error_body(message: str, *, status: int, param: str | None = None) -> dict[str, Any]:
    """The JSON body of an error."""
    return {"error": {"message": message, "type": _TYPES[status], "param": param, "code": status}}


def error_response(error: Exception, path: str = "") -> HttpResponse:
    """The response to an exception. One that is our bug is logged here and says nothing of its inside.

    Args:
        path: the request's, as `HttpRequest` has it: below /v1/messages errors have Anthropic's form.
    """
    status, message, param, headers = _describe(error)
    if path.startswith(_ANTHROPIC_PATH):
        body = _anthropic_body(message, status=status)
    else:
        body = error_body(message, status=status, param=param)
    return json_response(body, status=status, headers=headers)


def stream_error_body(error: Exception) -> dict[str, Any]:
    """The body of the frame that ends a stream in which this happened."""
    status, message, param, _ = _describe(error)
    return error_body(message, status=status, param=param)


def anthropic_stream_error_body(error: Exception) -> dict[str, Any]:
    """`stream_error_body` in Anthropic's form."""
    status, message, _, _ = _describe(error)
    return _anthropic_body(message, status=status)


def late_frames(response: HttpResponse, path: str = "") -> bytes:
    """The frames that say what a whole response says, to a client that was promised a stream before there was one.

    Args:
        response: from `error_response`, for the same path.
    """
    if path.startswith(_ANTHROPIC_PATH):
        return b"event: error\ndata: " + response.body + b"\n\n"
    return b"data: " + response.body + b"\n\n" + DONE


def _anthropic_body(message: str, *, status: int) -> dict[str, Any]:
    return {"type": "error", "error": {"type": _ANTHROPIC_TYPES.get(status, "api_error"), "message": message}}


def error_status(error: BaseException) -> int:
    """The status of the response to an exception."""
    if isinstance(error, ProtocolError):
        return error.status
    return next((status for kind, status in _STATUSES.items() if isinstance(error, kind)), 500)


_STATUSES = {InvalidRequestError: 400, NotFoundError: 404, AdmissionError: 429, EngineUnavailableError: 503}


def _describe(error: Exception) -> tuple[int, str, str | None, dict[str, str]]:
    """Status, message, param, headers."""
    status = error_status(error)
    if isinstance(error, ProtocolError):
        return status, str(error), None, error.headers
    if isinstance(error, (InvalidRequestError, NotFoundError)):
        return status, str(error), error.param, {}
    if isinstance(error, AdmissionError):
        return status, str(error), error.param, {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
    if status != 500:
        return status, str(error), None, {}
    request_id = REQUEST_ID.get()
    extra = {"request_id": request_id}
    _logger.error("request %s failed by a fault of ours", request_id or "without id", exc_info=error, extra=extra)
    return 500, "Internal server error. The server's log says more.", None, {}
