"""One row of the conformance list: what is sent where, and what must come back."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.conformance.exchange import Exchange

Check = Callable[["Exchange"], None]
"""Looks at an answer of status 200, beyond the form that its request alone prescribes."""

MODEL = "paged-tiny"
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
RESPONSES, MESSAGES, COUNT = "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"
BOTH = (COMPLETIONS, CHAT)
PROMPT = "Once upon a time"
CONVERSATION = ({"role": "user", "content": "Tell me a short story."},)
BASE: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"model": MODEL, "prompt": PROMPT, "max_tokens": 6, "temperature": 0},
    CHAT: {"model": MODEL, "messages": list(CONVERSATION), "max_tokens": 6, "temperature": 0},
    RESPONSES: {"model": MODEL, "input": "Tell me a short story.", "max_output_tokens": 6, "temperature": 0},
    MESSAGES: {"model": MODEL, "messages": list(CONVERSATION), "max_tokens": 6, "temperature": 0},
    COUNT: {"model": MODEL, "messages": list(CONVERSATION)},
}
"""What the rows of a route have in common; a row's own fields replace these."""


@dataclass(frozen=True)
class Case:
    """One request, and what must come back.

    Attributes:
        body: sent as JSON; bytes are sent as they are.
        param: of an error's body; what is wrong, as the client wrote it.
        checks: of an answer of status 200.
        needs_method: it is about the HTTP method, which TorchServe does not tell its models.
    """

    name: str
    path: str
    body: Any = None
    method: str = "POST"
    status: int = 200
    param: str | None = None
    checks: tuple[Check, ...] = ()
    needs_method: bool = False

    @property
    def content(self) -> bytes | None:
        """The body as it is sent."""
        return encode(self.body)


def accepted(field: str, value: Any, *checks: Check, on: tuple[str, ...] = BOTH, **others: Any) -> list[Case]:
    """A field's value that is right, on each route whole and streamed; `others` are fields that stand beside it."""
    return _cases(field, value, on, others, checks=checks)


def refused(
    field: str, value: Any, param: str | None = None, *, on: tuple[str, ...] = BOTH, **others: Any
) -> list[Case]:
    """A field's value that is wrong: 400, before the first frame where it would have been streamed.

    Args:
        param: the error's; the field's own name where it is left out.
    """
    return _cases(field, value, on, others, status=400, param=param or field)


def wrong_types(field: str, *values: Any, param: str | None = None, on: tuple[str, ...] = BOTH) -> list[Case]:
    """Values of a type that the field does not have; types are looked at before it matters whether it is a stream."""
    expected = {"status": 400, "param": param or f"body.{field}"}
    return [case for value in values for case in _cases(field, value, on, {}, streams=(False,), **expected)]


def whole(cases: list[Case]) -> list[Case]:
    """Those that are not streamed."""
    return [case for case in cases if not case.body.get("stream")]


def streamed(cases: list[Case]) -> list[Case]:
    """Those that are."""
    return [case for case in cases if case.body.get("stream")]


def encode(body: Any) -> bytes | None:
    """A body as it is sent: as JSON, or as it is where it is bytes."""
    return body if body is None or isinstance(body, bytes) else json.dumps(body).encode()


def request(path: str, stream: bool = False, /, **fields: Any) -> dict[str, Any]:
    """A route's body with these fields."""
    return {**BASE[path], **({"stream": True} if stream else {}), **fields}


def _short(told: str) -> str:
    """So that it can be read in a line; what is cut off is told by a number, so that no two are alike."""
    return told if len(told) < 90 else f"{told[:76]}... {zlib.crc32(told.encode()):08x}"


def _cases(
    field: str,
    value: Any,
    on: tuple[str, ...],
    others: dict[str, Any],
    streams: tuple[bool, ...] = (False, True),
    **expected: Any,
) -> list[Case]:
    cases = []
    for path in on:
        for stream in streams:
            fields = {**others, field: value}
            told = json.dumps({field: value, **others}, ensure_ascii=True)
            name = f"{path.rpartition('/v1/')[2]}{' stream' if stream else ''} {_short(told)}"
            cases.append(Case(name, path, request(path, stream, **fields), **expected))
    return cases
