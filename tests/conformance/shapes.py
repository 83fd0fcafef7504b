"""What every answer must look like, told from its request alone: the published types, and what vLLM adds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.conformance import choice_shapes, message_shapes, response_shapes
from tests.conformance.case import CHAT, COMPLETIONS, COUNT, MESSAGES, RESPONSES, Case
from tests.conformance.exchange import Exchange

_ERROR_TYPES = {
    400: ("BadRequestError", "invalid_request_error"),
    404: ("NotFoundError", "not_found_error"),
    405: ("MethodNotAllowedError", "invalid_request_error"),
    413: ("ContentTooLargeError", "request_too_large"),
}
"""By status: vLLM's, and Anthropic's."""

_SHAPES: Mapping[str, Callable[[Exchange], None]] = {
    COMPLETIONS: choice_shapes.check,
    CHAT: choice_shapes.check,
    RESPONSES: response_shapes.check,
    MESSAGES: message_shapes.check,
}


def check(case: Case, exchange: Exchange) -> None:
    """The status, the form that the request prescribes, and the row's own checks."""
    reply = exchange.reply
    assert reply.status == case.status, reply.body.decode()
    if reply.status >= 400:
        _check_error(case, exchange)
        return
    if case.path in _SHAPES:
        assert reply.streamed == bool(exchange.body.get("stream"))
        _SHAPES[case.path](exchange)
    for row_check in case.checks:
        row_check(exchange)


def _check_error(case: Case, exchange: Exchange) -> None:
    body, (kind, anthropic_kind) = exchange.json, _ERROR_TYPES[case.status]
    error = body["error"]
    if case.path in (MESSAGES, COUNT):
        assert set(body) == {"type", "error"} and body["type"] == "error"
        assert set(error) == {"type", "message"} and error["type"] == anthropic_kind
    else:
        assert set(body) == {"error"} and set(error) == {"message", "type", "param", "code"}
        assert (error["code"], error["type"]) == (case.status, kind)
        assert error["param"] == case.param, error
    assert isinstance(error["message"], str) and error["message"].endswith((".", "?")), error
    assert "Traceback" not in error["message"] and ".py" not in error["message"], error
