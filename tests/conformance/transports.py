"""The ways to a server: the service itself in this process, or a live host."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Protocol

import httpx

from paged_backend.handlers.openai.service import HttpRequest, OpenAIService
from tests.conformance.reply import Reply

_TIMEOUT_S = 60


class Transport(Protocol):
    """One server."""

    def send(self, method: str, path: str, content: bytes | None) -> Reply:
        """Sends one request, with a body of JSON or none."""


class InProcess:
    """The service that both hosts mount, without a host."""

    def __init__(self, service: OpenAIService) -> None:
        self._service = service
        self._loop = asyncio.new_event_loop()

    def send(self, method: str, path: str, content: bytes | None) -> Reply:
        return self._loop.run_until_complete(self._send(method, path, content))

    def close(self) -> None:
        """The service stays as it is."""
        self._loop.close()

    async def _send(self, method: str, path: str, content: bytes | None) -> Reply:
        response = await self._service.handle(HttpRequest(path=path, method=method, body=content))
        body = response.body
        if response.stream is not None:
            body += b"".join([piece async for piece in response.stream])
        return Reply(response.status, response.headers["Content-Type"].partition(";")[0], body)


class Live:
    """A host that serves at `url`. It may be used from many threads."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=_TIMEOUT_S)

    def __enter__(self) -> Live:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def send(self, method: str, path: str, content: bytes | None) -> Reply:
        headers = {} if content is None else {"content-type": "application/json"}
        response = self._client.request(method, path, content=content, headers=headers)
        return Reply(response.status_code, response.headers["content-type"].partition(";")[0], response.content)
