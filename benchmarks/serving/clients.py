"""Clients that time streams: of the bare engine, of a host through the `openai` package, of a host at little cost.

All three ask for the same: one greedy completion of a given length, end of sequence ignored. The `openai` client is
what users have; it takes longer for a chunk than the hosts do, so on a machine that server and client share it measures
itself. `PlainStreams` reads the bytes as they come, and looks into them after the stream has ended.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol
from urllib.parse import urlsplit

import openai

from paged_backend import SamplingParams
from paged_backend.engine.client import EngineClient

Prompt = str | Sequence[int]

_LAST_CHUNK = b"0\r\n\r\n"
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class StreamTimes:
    """One stream, in seconds from its request.

    Attributes:
        chunks_s: when each chunk with choices came.
        end_s: when the stream ended.
        num_tokens: what the server counted: a chunk may hold several.
    """

    chunks_s: list[float]
    end_s: float
    num_tokens: int


class StreamClient(Protocol):
    """Runs streams; any number of them at once."""

    async def run(self, prompt: Prompt, max_tokens: int) -> StreamTimes:
        """One completion of max_tokens tokens."""
        ...


class EngineStreams:
    """Streams of an engine in this process."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client

    async def run(self, prompt: Prompt, max_tokens: int) -> StreamTimes:
        """One completion, without any server."""
        start_s = time.perf_counter()
        chunks_s: list[float] = []
        num_tokens = 0
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        stream = self._client.submit(prompt, params)
        try:
            async for delta in stream:
                num_tokens += sum(len(output.token_ids) for output in delta.outputs)
                chunks_s.append(time.perf_counter() - start_s)
        finally:
            stream.abort()
        return StreamTimes(chunks_s, time.perf_counter() - start_s, num_tokens)


class OpenAIStreams:
    """Streams of a server through the `openai` package; use it in `async with`.

    Args:
        base_url: the OpenAI routes, ending in /v1.
        model: a name that the server serves.
        timeout_s: for each request.
    """

    def __init__(self, base_url: str, model: str, api_key: str = "none", timeout_s: float = 600.0) -> None:
        self._model = model
        self._client = openai.AsyncOpenAI(base_url=base_url, api_key=api_key, timeout=timeout_s, max_retries=0)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> OpenAIStreams:
        await self._stack.enter_async_context(self._client)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def run(self, prompt: Prompt, max_tokens: int) -> StreamTimes:
        """One completion; whoever cancels it closes the connection, which ends it on the server."""
        start_s = time.perf_counter()
        chunks_s: list[float] = []
        num_tokens = 0
        stream = await self._client.completions.create(
            model=self._model,
            prompt=prompt if isinstance(prompt, str) else list(prompt),
            max_tokens=max_tokens,
            temperature=0.0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        async with stream:
            async for chunk in stream:
                if chunk.usage is not None:
                    num_tokens = chunk.usage.completion_tokens
                if chunk.choices:
                    chunks_s.append(time.perf_counter() - start_s)
        return StreamTimes(chunks_s, time.perf_counter() - start_s, num_tokens)


class PlainStreams:
    """Streams of a server over bare sockets, a connection each: a few microseconds of this process for a chunk.

    Args:
        base_url: the OpenAI routes, ending in /v1; http alone.
        model: a name that the server serves.
    """

    def __init__(self, base_url: str, model: str, api_key: str = "none") -> None:
        self._url = urlsplit(base_url)
        self._model = model
        self._api_key = api_key

    async def run(self, prompt: Prompt, max_tokens: int) -> StreamTimes:
        """One completion.

        Raises:
            RuntimeError: the server answered something else than a whole stream.
        """
        host, port = self._url.hostname or "127.0.0.1", self._url.port or 80
        connection = await asyncio.get_running_loop().create_connection(
            lambda: _Exchange(self._request(prompt, max_tokens)), host, port
        )
        transport, exchange = connection
        try:
            await exchange.ended
        finally:
            transport.abort()
        return exchange.times()

    def _request(self, prompt: Prompt, max_tokens: int) -> bytes:
        body = json.dumps(
            {
                "model": self._model,
                "prompt": prompt if isinstance(prompt, str) else list(prompt),
                "max_tokens": max_tokens,
                "temperature": 0.0,
                "stream": True,
                "stream_options": {"include_usage": True},
                "ignore_eos": True,
            }
        ).encode()
        head = (
            f"POST {self._url.path}/completions HTTP/1.1\r\nHost: {self._url.netloc}\r\n"
            f"Authorization: Bearer {self._api_key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


class _Exchange(asyncio.Protocol):
    """One request and the bytes that answer it.

    They end with a chunk of no length or, where all was there at once, after Content-Length bytes: TorchServe does so.
    """

    def __init__(self, request: bytes) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._start_s = 0.0
        self._pieces: list[tuple[float, bytes]] = []
        self._num_missing: float | None = None  # of the body; infinite where its length is not said beforehand

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._start_s = time.perf_counter()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._pieces.append((time.perf_counter() - self._start_s, data))
        if self._num_missing is None:
            head, separator, body = b"".join(piece for _, piece in self._pieces).partition(b"\r\n\r\n")
            if not separator:
                return
            known = _CONTENT_LENGTH.search(head + b"\r\n")
            self._num_missing = int(known[1]) - len(body) if known else math.inf
        else:
            self._num_missing -= len(data)
        if self._num_missing <= 0 or data.endswith(_LAST_CHUNK) or (len(data) < len(_LAST_CHUNK) and self._has_ended()):
            self._settle()

    def connection_lost(self, error: Exception | None) -> None:
        self._settle()

    def times(self) -> StreamTimes:
        """What came when."""
        raw = b"".join(data for _, data in self._pieces)
        head, _, body = raw.partition(b"\r\n\r\n")
        is_whole = self._num_missing == 0 or body.endswith(_LAST_CHUNK)
        if not head.startswith(b"HTTP/1.1 200 ") or not is_whole:
            raise RuntimeError(f"the server did not stream: {raw[:500]!r}")
        chunks_s: list[float] = []
        num_tokens = 0
        text = b""
        for came_s, chunk in self._chunks(len(head) + 4, raw):
            *frames, text = (text + chunk).split(b"\n\n")
            for frame in frames:
                if frame.startswith(b'data: {"error"'):
                    raise RuntimeError(f"the stream failed: {frame!r}")
                if b'"choices":[{' in frame:
                    chunks_s.append(came_s)
                elif b'"usage":' in frame:
                    num_tokens = int(json.loads(frame.removeprefix(b"data: "))["usage"]["completion_tokens"])
        return StreamTimes(chunks_s, self._pieces[-1][0], num_tokens)

    def _chunks(self, position: int, raw: bytes) -> list[tuple[float, bytes]]:
        """The chunks of a body that begins at a position, each with the time at which its end had come."""
        if self._num_missing == 0:
            return [(self._pieces[-1][0], raw[position:])]
        ends: list[tuple[int, float]] = []
        size = 0
        for came_s, data in self._pieces:
            size += len(data)
            ends.append((size, came_s))
        chunks: list[tuple[float, bytes]] = []
        piece = 0
        while True:
            line_end = raw.index(b"\r\n", position)
            length = int(raw[position:line_end], 16)
            if not length:
                return chunks
            end = line_end + 2 + length
            while ends[piece][0] < end:
                piece += 1
            chunks.append((ends[piece][1], raw[line_end + 2 : end]))
            position = end + 2

    def _has_ended(self) -> bool:
        return b"".join(data for _, data in self._pieces[-len(_LAST_CHUNK) :]).endswith(_LAST_CHUNK)

    def _settle(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
