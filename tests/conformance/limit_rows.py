"""What one request may ask for at most, and the deployment's second model, which has a short context."""

from __future__ import annotations

from tests.conformance.case import (
    BOTH,
    CHAT,
    COMPLETIONS,
    CONVERSATION,
    MESSAGES,
    MODEL,
    RESPONSES,
    Case,
    accepted,
    refused,
)
from tests.conformance.checks import answers, same_as
from tests.serving.conftest import MAX_BODY_BYTES

_ON_TEXT, _ON_CHAT = (COMPLETIONS,), (CHAT,)
_ALL = (*BOTH, RESPONSES, MESSAGES)


def _nested(depth: int) -> bytes:
    return b'{"prompt": "x", "user": ' + b"[" * depth + b"]" * depth + b"}"


_LIMITS = [
    *refused("n", 129),
    *refused("best_of", 129),
    *refused("stop", "x" * 1001),
    *refused("prompt", ["x"] * 2049, on=_ON_TEXT),
    *refused("messages", list(CONVERSATION) * 4097, on=_ON_CHAT),
    Case("deeper than is allowed", COMPLETIONS, _nested(128), status=400, param="body"),
    Case("far too deep", COMPLETIONS, b"[" * 200_000, status=400, param="body"),
    *(
        Case(f"{path} too large", path, b'{"user": "' + b"x" * MAX_BODY_BYTES + b'"}', status=413)
        for path in (*_ALL, "/tokenize")
    ),
]

_SECOND = [
    *accepted("model", "second", same_as(model=MODEL), on=_ALL),
    *accepted("model", "alias", same_as(model=MODEL), on=_ALL),
    *refused("prompt", [100] * 100, on=_ON_TEXT, model="second"),
    *refused("max_tokens", 100, on=_ON_TEXT, model="alias"),
    *accepted("prompt", [100] * 90, same_as(model=MODEL), on=_ON_TEXT, model="second"),
    Case("GET /v1/models/second", "/v1/models/second", method="GET", checks=(answers(id="second", max_model_len=100),)),
    Case("GET /v1/models/alias", "/v1/models/alias", method="GET", checks=(answers(id="alias", max_model_len=100),)),
]

ROWS = [*_LIMITS, *_SECOND]
