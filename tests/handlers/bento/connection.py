"""One HTTP request over ASGI, driven by hand: bodies in pieces, a client that leaves when the test says so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

from starlette.types import ASGIApp, Message, Scope


class Connection:
    """A client's side.

    Args:
        unfinished: after the chunks, the client is silent, though its body is not whole.

    Attributes:
        sent: what the application sent so far.
        waited_for_body: how many body messages the application asked for.
    """

    def __init__(
        self,
        path: str,
        chunks: Iterable[bytes] = (b"",),
        *,
        method: str = "POST",
        headers: dict[str, str] | None = None,
        unfinished: bool = False,
    ) -> None:
        self.sent: list[Message] = []
        self.waited_for_body = 0
        self._chunks = list(chunks)
        self._unfinished = unfinished
        self._left = asyncio.Event()
        self._first_byte = asyncio.Event()
        self.scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }

    async def receive(self) -> Message:
        if self.waited_for_body < len(self._chunks):
            chunk = self._chunks[self.waited_for_body]
            self.waited_for_body += 1
            return {
                "type": "http.request",
                "body": chunk,
                "more_body": self._unfinished or self.waited_for_body < len(self._chunks),
            }
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        self._first_byte.set()
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._left.set()  # as uvicorn has it: after the end of the response, receive tells of a disconnect
        await asyncio.sleep(0)

    def leave(self) -> None:
        self._left.set()

    async def wait_first_byte(self) -> None:
        await asyncio.wait_for(self._first_byte.wait(), 5)

    async def run(self, app: ASGIApp) -> None:
        await asyncio.wait_for(app(self.scope, self.receive, self.send), 10)

    @property
    def status(self) -> int:
        starts = [message for message in self.sent if message["type"] == "http.response.start"]
        assert len(starts) == 1, self.sent
        status: int = starts[0]["status"]
        return status

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.sent if m["type"] == "http.response.body")

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == self.status
        return error
