"""Server-sent events: the engine's deltas become frames, and a stream that is closed aborts its requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from paged_backend.handlers.openai.engine_port import StreamPort
from paged_backend.handlers.openai.errors import error_status, stream_error_body
from paged_backend.handlers.openai.protocol.base import StreamOptions
from paged_backend.handlers.openai.receipt import receipt
from paged_backend.handlers.openai.wire import DONE, STREAM_TYPE, HttpResponse, encode_json
from paged_backend.outputs import CompletionDelta, PromptLogprobs, RequestDelta, RequestOutput, RequestStateStats


class FrameWriter(Protocol):
    """Writes one response's frames."""

    def frames(self, prompt_index: int, delta: RequestDelta) -> bytes:
        """Frames of what a prompt gained in one step; b"" where there is nothing to tell."""

    def end(self) -> bytes:
        """The last frames of a stream that went well."""

    def failure(self, error: Exception) -> bytes:
        """The last frames of a stream that did not."""


class ChunkWriter(Protocol):
    """Writes the choices of one route's chunks."""

    head: bytes
    """What every chunk begins with: JSON up to the choices' list."""

    first_head: bytes
    """The same of the chunks of first choices, which may say more."""

    def first_choices(self, prompt_index: int) -> list[dict[str, Any]]:
        """Choices that precede a prompt's first delta."""

    def take_prompt(self, prompt_index: int, logprobs: PromptLogprobs) -> None:
        """Learns of a prompt's log-probabilities, where they were asked for, before its first choice."""

    def choices(self, prompt_index: int, delta: CompletionDelta) -> list[dict[str, Any]]:
        """One sample's progress, each choice for a chunk of its own."""


@dataclass(slots=True)
class _Outcome:
    """How a stream ends, told by who writes its frames.

    Attributes:
        error_status: of what went wrong; None where nothing did.
    """

    error_status: int | None = None


class EventStream:
    """The stream of one response. Closing it aborts the engine's requests, also before the first frame.

    (An async generator alone would not do: closing one that was never started runs nothing of it, and closing
    one that another task is waiting in is an error.)
    """

    def __init__(self, requests: Sequence[StreamPort], writer: FrameWriter) -> None:
        self._outcome = _Outcome()
        self._frames = _event_frames(requests, writer, self._outcome)
        self._requests = requests
        self._open = True

    @property
    def error_status(self) -> int | None:
        """The status that the response would have had, where a fault ended it; known with its last frame."""
        return self._outcome.error_status

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

    Args:
        receipts: whether the usage has a receipt for each prompt, once its request is over.

    Attributes:
        num_reasoning_tokens: how many of the completions' are reasoning; None where nobody looks for it.
    """

    def __init__(self, prompt_lengths: Sequence[int], *, receipts: bool = False) -> None:
        self.has_receipts = receipts
        self.num_prompt_tokens = sum(prompt_lengths)
        self.num_completion_tokens = 0
        self.num_reasoning_tokens: int | None = None
        self._num_cached = [0] * len(prompt_lengths)
        self._stats: dict[int, RequestStateStats] = {}

    def add(self, prompt_index: int, delta: RequestDelta) -> None:
        """Counts what a prompt gained."""
        if delta.metrics is not None:
            self._stats[prompt_index] = delta.metrics
        self._num_cached[prompt_index] = delta.num_cached_tokens
        self.num_completion_tokens += sum(len(output.token_ids) for output in delta.outputs)
        self.num_completion_tokens += delta.num_unchosen_tokens

    def add_output(self, prompt_index: int, output: RequestOutput) -> None:
        """Counts a prompt's whole output."""
        if output.metrics is not None:
            self._stats[prompt_index] = output.metrics
        self._num_cached[prompt_index] = output.num_cached_tokens
        self.num_completion_tokens += sum(len(sample.token_ids) for sample in output.outputs)
        self.num_completion_tokens += output.num_unchosen_tokens

    def body(self) -> dict[str, Any]:
        """The `usage` object."""
        usage: dict[str, Any] = {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_completion_tokens,
            "total_tokens": self.num_prompt_tokens + self.num_completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(self._num_cached)},
        }
        if self.num_reasoning_tokens is not None:
            usage["completion_tokens_details"] = {"reasoning_tokens": self.num_reasoning_tokens}
        if self.has_receipts and len(self._stats) == len(self._num_cached):
            usage["receipts"] = [receipt(stats) for _, stats in sorted(self._stats.items())]
        return usage


class ChunkFrames:
    """Frames as OpenAI's completions have them: chunks, the usage where it is asked for, [DONE].

    Args:
        include_usage: send a last chunk with no choices and the usage.
        continuous_usage: send the usage so far in every chunk.
    """

    def __init__(self, writer: ChunkWriter, tally: UsageTally, *, include_usage: bool, continuous_usage: bool) -> None:
        self._writer = writer
        self._tally = tally
        self._include_usage = include_usage
        self._continuous_usage = continuous_usage
        # OpenAI's rule: where the usage is asked for, chunks before the one that tells it say null.
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._begun: set[int] = set()

    @classmethod
    def of(cls, options: StreamOptions | None, writer: ChunkWriter, tally: UsageTally) -> ChunkFrames:
        """With the usage that a request's stream_options ask for; receipts come with it, so they ask for it, too."""
        options = options or StreamOptions()
        include = options.include_usage or tally.has_receipts
        return cls(writer, tally, include_usage=include, continuous_usage=options.continuous_usage_stats)

    def frames(self, prompt_index: int, delta: RequestDelta) -> bytes:
        """One engine step gives one piece: hosts pay per piece, not per byte."""
        writer = self._writer
        self._tally.add(prompt_index, delta)
        if delta.prompt_logprobs is not None:
            writer.take_prompt(prompt_index, delta.prompt_logprobs)
        choices = [choice for output in delta.outputs for choice in writer.choices(prompt_index, output)]
        tail = self._tail
        if self._continuous_usage:
            tail = b'],"usage":' + encode_json(self._tally.body()) + b"}\n\n"
        pieces = [b"data: " + writer.head + encode_json(choice) + tail for choice in choices]
        if prompt_index not in self._begun:
            self._begun.add(prompt_index)
            first = writer.first_choices(prompt_index)
            pieces = [b"data: " + writer.first_head + encode_json(choice) + tail for choice in first] + pieces
        return b"".join(pieces)

    def end(self) -> bytes:
        """The usage, and the stream's end."""
        if not self._include_usage:
            return DONE
        return b"data: " + self._writer.head + b'],"usage":' + encode_json(self._tally.body()) + b"}\n\n" + DONE

    def failure(self, error: Exception) -> bytes:
        """What went wrong, and the stream's end."""
        return b"data: " + encode_json(stream_error_body(error)) + b"\n\n" + DONE


async def stream_response(requests: Sequence[StreamPort], writer: FrameWriter) -> HttpResponse:
    """The streaming response of requests that the engine has accepted, one per prompt.

    Raises:
        PagedBackendError: what refuses one of them later, but before there is anything to stream: a grammar that
            cannot be compiled. All are aborted then, and where the caller is cancelled.
    """
    try:
        for request in requests:
            await request.begun()
    except BaseException:
        abort_all(requests)
        raise
    headers = {"Content-Type": STREAM_TYPE, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return HttpResponse(200, headers, stream=EventStream(requests, writer))


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
    requests: Sequence[StreamPort], writer: FrameWriter, outcome: _Outcome
) -> AsyncGenerator[bytes, None]:
    try:
        if len(requests) == 1:
            async for delta in requests[0]:
                if piece := writer.frames(0, delta):
                    yield piece
        else:
            async with aclosing(_merged(requests)) as deltas:
                async for prompt_index, delta in deltas:
                    if piece := writer.frames(prompt_index, delta):
                        yield piece
        last = writer.end()
    except Exception as error:
        abort_all(requests)
        outcome.error_status = error_status(error)
        last = writer.failure(error)
    yield last


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
