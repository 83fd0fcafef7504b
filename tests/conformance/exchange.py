"""A request and its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.conformance.case import encode
from tests.conformance.reply import Reply, comparable, said_in, texts_of
from tests.conformance.transports import Transport


class Caller:
    """Asks one server; the same question once, since the same request has the same answer."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._known: dict[tuple[str, str, bytes | None], Exchange] = {}

    def ask(self, method: str, path: str, body: Any = None) -> Exchange:
        """Sends a body as JSON, bytes as they are."""
        content = encode(body)
        key = (method, path, content)
        if key not in self._known:
            self._known[key] = Exchange(self, path, body, self._transport.send(method, path, content))
        return self._known[key]


@dataclass(frozen=True)
class Exchange:
    """One request and its answer.

    Attributes:
        body: what was sent, before it became JSON.
    """

    caller: Caller
    path: str
    body: Any
    reply: Reply

    @property
    def json(self) -> Any:
        return self.reply.json

    @property
    def answer(self) -> dict[str, Any]:
        return self.reply.answer

    @property
    def choices(self) -> list[dict[str, Any]]:
        return self.answer["choices"]

    @property
    def texts(self) -> list[str]:
        """Each choice's text; responses and messages have one."""
        return texts_of(self.answer)

    @property
    def said(self) -> Any:
        """What the model said, as far as two answers to one request must agree."""
        return comparable(said_in(self.answer))

    def asked(self, **changes: Any) -> Exchange:
        """The answer to the same request but for these fields; null takes one out."""
        body = {name: value for name, value in {**self.body, **changes}.items() if value is not None}
        found = self.caller.ask("POST", self.path, body)
        assert found.reply.status == 200, found.reply
        return found

    def token_ids(self) -> list[list[int]]:
        """Each choice's tokens, asked for if they were not."""
        found = self if self.body.get("return_token_ids") else self.asked(return_token_ids=True)
        return [choice["token_ids"] for choice in found.choices]
