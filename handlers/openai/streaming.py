"""Server-sent events: the engine's deltas become frames, and a stream that is closed aborts its requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from paged_backend.handlers.openai.engine_port import StreamPort
from paged_backend.handlers.openai.errors import stream_error_body
from paged_backend.handlers.openai.wire import STREAM_TYPE, HttpResponse, encode_json
from paged_backend.outputs import CompletionDelta, RequestDelta, RequestOutput

DONE = b"data: [DONE]\n\n"


class ChunkWriter(Protocol):
    """Writes the choices of one route's chunks."""

    head: bytes
    """What every chunk begins with: JSON up to the choices' list."""

    def first_choices(self, prompt_index: int) -> list[dict[str, Any]]:
        """Choices that precede a prompt's first delta."""

    def choice(self, prompt_index: int, delta: CompletionDelta) -> dict[str, Any]:
        """One sample's progress."""


class EventStream:
    """The stream of one response. Closing it aborts the engine's requests, also before the first frame.

    (An async generator alone would not do: closing one that was never started runs nothing of it, and closing
    one that another task is waiting in is an error.)
    """

    def __init__(self, frames: AsyncGenerator[bytes, None], requests: Sequence[StreamPort]) -> None:
        self._frames = frames
        self._requests = requests
        self._open = True

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self._frames.__anext__()
        except BaseException as error:
            if isinstance(error, StopAsyncIteration):
                self._open = False
            else:
                self._abort()
            raise

    async def aclose(self) -> None:
        self._abort()
        try:
            await self._frames.aclose()
        except RuntimeError as error:
            # Another task waits in the generator: the abort ends that wait, and it sees the stream's end.
            if "already running" not in str(error):
                raise

    def __del__(self) -> None:
        self._abort()

    def _abort(self) -> None:
        if self._open:
            self._open = False
            abort_all(self._requests)


class UsageTally:
    """Token counts of one response, over all of its prompts and samples, of best_of also those that were not chosen.

    Of a beam search, the returned beams count: the others were never samples, but continuations that were looked at.
    """

    def __init__(self, prompt_lengths: Sequence[int]) -> None:
        self.num_prompt_tokens = sum(prompt_lengths)
        self.num_completion_tokens = 0
        self._num_cached = [0] * len(prompt_lengths)

    def add(self, prompt_index: int, delta: RequestDelta) -> None:
        """Counts what a prompt gained."""
        self._num_cached[prompt_index] = delta.num_cached_tokens
        self.num_completion_tokens += sum(len(output.token_ids) for output in delta.outputs)
        self.num_completion_tokens += delta.num_unchosen_tokens

    def add_output(self, prompt_index: int, output: RequestOutput) -> None:
        """Counts a prompt's whole output."""
        self._num_cached[prompt_index] = output.num_cached_tokens
        self.num_completion_tokens += sum(len(sample.token_ids) for sample in output.outputs)
        self.num_completion_tokens += output.num_unchosen_tokens

    def body(self) -> dict[str, Any]:
        """The `usage` object."""
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_completion_tokens,
            "total_tokens": self.num_prompt_tokens + self.num_completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(self._num_cached)},
        }


def stream_response(
    requests: Sequence[StreamPort],
    writer: ChunkWriter,
    tally: UsageTally,
    *,
    include_usage: bool,
    continuous_usage: bool,
) -> HttpResponse:
    """The streaming response of requests that the engine has accepted.

    Args:
        requests: one per prompt.
        include_usage: send a last chunk with no choices and the usage.
        continuous_usage: send the usage so far in every chunk.
    """
    frames = _event_frames(requests, writer, tally, include_usage, continuous_usage)
    headers = {"Content-Type": STREAM_TYPE, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return HttpResponse(200, headers, stream=EventStream(frames, requests))


async def collect_all(requests: Sequence[StreamPort]) -> list[RequestOutput]:
    """The whole outputs of accepted requests. If one fails or the caller is cancelled, all are aborted."""
    try:
        if len(requests) == 1:
            return [await requests[0].collect_async()]
        return await asyncio.gather(*(request.collect_async() for request in requests))
    except BaseException:
        abort_all(requests)
        raise


def abort_all(requests: Sequence[StreamPort]) -> None:
    """Aborts requests; those that have ended already are left as they are."""
    for request in requests:
        request.abort()


async def _event_frames(
    requests: Sequence[StreamPort],
    writer: ChunkWriter,
    tally: UsageTally,
    include_usage: bool,
    continuous_usage: bool,
) -> AsyncGenerator[bytes, None]:
    begun: set[int] = set()

    def frames(prompt_index: int, delta: RequestDelta) -> bytes:
        """One engine step gives one piece: hosts pay per piece, not per byte."""
        tally.add(prompt_index, delta)
        tail = b"]}\n\n"
        if continuous_usage:
            tail = b'],"usage":' + encode_json(tally.body()) + b"}\n\n"
        choices = [writer.choice(prompt_index, output) for output in delta.outputs]
        if prompt_index not in begun:
            begun.add(prompt_index)
            choices = writer.first_choices(prompt_index) + choices
        return b"".join([b"data: " + writer.head + encode_json(choice) + tail for choice in choices])

    try:
        if len(requests) == 1:
            async for delta in requests[0]:
                if piece := frames(0, delta):
                    yield piece
        else:
            async with aclosing(_merged(requests)) as deltas:
                async for prompt_index, delta in deltas:
                    if piece := frames(prompt_index, delta):
                        yield piece
        if include_usage:
            yield b"data: " + writer.head + b'],"usage":' + encode_json(tally.body()) + b"}\n\n"
    except Exception as error:
        abort_all(requests)
        yield b"data: " + encode_json(stream_error_body(error)) + b"\n\n"
    yield DONE


async def _merged(requests: Sequence[StreamPort]) -> AsyncGenerator[tuple[int, RequestDelta], None]:
    """The deltas of several requests as they come, with the index of their prompt."""
    queue: asyncio.Queue[tuple[int, RequestDelta | Exception | None]] = asyncio.Queue()

    async def forward(index: int, request: StreamPort) -> None:
        try:
            async for delta in request:
                queue.put_nowait((index, delta))
            queue.put_nowait((index, None))
        except Exception as error:
            queue.put_nowait((index, error))

    tasks = [asyncio.create_task(forward(index, request)) for index, request in enumerate(requests)]
    try:
        num_live = len(tasks)
        while num_live:
            index, item = await queue.get()
            if item is None:
                num_live -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield index, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
