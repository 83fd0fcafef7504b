"""One request's deltas on their way from the engine's thread to whoever asked, on asyncio or a plain thread."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

from paged_backend.errors import PagedBackendError
from paged_backend.outputs import RequestDelta, RequestOutput

StreamItem = RequestDelta | PagedBackendError
"""What a stream carries: deltas, the last of them finished, or an error, which is always the last."""

Waiter = tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]"]


class RequestStream:
    """The deltas of one accepted request; iterate it once, with `for` or `async for`.

    It ends after the delta with `finished`, or raises what ended the request. Whoever stops reading early must call
    `abort`, or the request runs on for nobody.

    Attributes:
        prompt: the prompt's text, or None where token ids were given.
        n: number of samples.
    """

    def __init__(
        self,
        request_id: str,
        prompt: str | None,
        prompt_token_ids: list[int],
        n: int,
        abort: Callable[[RequestStream], None],
    ) -> None:
        self.request_id = request_id
        self.prompt = prompt
        self.prompt_token_ids = prompt_token_ids
        self.n = n
        self._abort = abort
        self._items: deque[StreamItem] = deque()
        self._changed = threading.Condition()
        self._waiter: Waiter | None = None
        self._ended = False

    def abort(self) -> None:
        """Ends the request; its stream then closes with finish_reason "abort". Safe to call at any time."""
        self._abort(self)

    def put(self, item: StreamItem) -> Waiter | None:
        """Adds an item (engine's thread); returns the asyncio waiter to wake, so that wake-ups can be batched."""
        with self._changed:
            self._items.append(item)
            waiter, self._waiter = self._waiter, None
            self._changed.notify_all()
        return waiter

    def __iter__(self) -> Iterator[RequestDelta]:
        return self

    def __next__(self) -> RequestDelta:
        if self._ended:
            raise StopIteration
        with self._changed:
            while not self._items:
                self._changed.wait()
            item = self._items.popleft()
        return self._unwrap(item)

    def __aiter__(self) -> AsyncIterator[RequestDelta]:
        return self

    async def __anext__(self) -> RequestDelta:
        if self._ended:
            raise StopAsyncIteration
        while True:
            with self._changed:
                if self._items:
                    item = self._items.popleft()
                    break
                loop = asyncio.get_running_loop()
                future: asyncio.Future[None] = loop.create_future()
                self._waiter = (loop, future)
            await future
        return self._unwrap(item)

    def collect(self) -> RequestOutput:
        """Waits for the end; returns the whole output."""
        output = self._empty_output()
        for delta in self:
            output.extend(delta)
        return output

    async def collect_async(self) -> RequestOutput:
        """`collect` for asyncio."""
        output = self._empty_output()
        async for delta in self:
            output.extend(delta)
        return output

    def _empty_output(self) -> RequestOutput:
        return RequestOutput.empty(self.request_id, self.prompt, self.prompt_token_ids, self.n)

    def _unwrap(self, item: StreamItem) -> RequestDelta:
        if isinstance(item, PagedBackendError):
            self._ended = True
            raise item
        self._ended = item.finished
        return item
