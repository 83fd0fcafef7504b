"""One request's gains on their way from the engine's thread to whoever asked, on asyncio or a plain thread."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import cast

from paged_backend.engine.assembler import DeltaAssembler
from paged_backend.engine.request import EngineRequest, Gain
from paged_backend.engine.tokenizer import Tokenizer
from paged_backend.errors import PagedBackendError
from paged_backend.outputs import RequestDelta, RequestOutput, RequestStateStats

StreamItem = list[Gain] | PagedBackendError
"""What a stream carries: a step's gains, or an error, which is always the last."""

Waiter = threading.Event | tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]"]
"""Whom to wake: a thread, or a future of an event loop."""


class RequestStream:
    """The deltas of one accepted request; iterate it once, with `for` or `async for`, or collect it.

    It ends after the delta with `finished`, or raises what ended the request. Whoever stops reading early must call
    `abort`, or the request runs on for nobody. Where outputs are chosen at the end (best_of, beam search), there is one
    delta, of all of them.

    The engine's thread adds items and looks who waits; one reader takes items and says that it waits, then looks again
    before it sleeps. So neither needs a lock, and deltas and their text are made by who reads them, when they are read.
    Where the engine is given up, another thread adds the error that ends the stream: what comes behind it is not read.

    Args:
        request: what was accepted.
        prompt: the prompt's text, or None where token ids were given.
        tokenizer: None gives deltas without text.
        abort: called with the stream to end it; tells whether there was anything to end.
    """

    def __init__(
        self,
        request: EngineRequest,
        prompt: str | None,
        tokenizer: Tokenizer | None,
        abort: Callable[[RequestStream], bool],
    ) -> None:
        self.key = request.key
        self.request_id = request.request_id
        self.tenant = request.tenant
        self.prompt = prompt
        self.prompt_token_ids = request.prompt_token_ids
        self.n = request.params.n
        self._is_constrained = request.grammar is not None
        self._abort = abort
        self._assembler = DeltaAssembler(request, tokenizer)
        self._items: deque[StreamItem] = deque()
        self._metrics: RequestStateStats | None = None  # there before the last item
        self._closed = False  # by the last item
        self._waiter: Waiter | None = None
        self._comes_at_once = self._waits_for_end = request.params.chooses_at_end
        self._interval = request.params.stream_interval or 1
        self._num_wanted = 1  # steps that the next delta gathers; the first comes at once
        self._ended = False  # for the reader
        self._callbacks: deque[Callable[[int], None]] = deque()
        self.num_generated = 0

    async def begun(self) -> None:
        """Waits until it cannot be refused any more; raises what did so.

        That is at once, but where a grammar has to be compiled: then it waits for what the request gains first.
        """
        if not self._is_constrained or self._comes_at_once:
            return
        await self._wait_async()
        first = self._items[0]
        if isinstance(first, PagedBackendError):
            self._ended = True
            raise first

    def abort(self) -> bool:
        """Ends the request; its stream then closes with finish_reason "abort". Safe to call at any time.

        Returns:
            False where the request was over.
        """
        return self._abort(self)

    def add_done_callback(self, callback: Callable[[int], None]) -> None:
        """Has `callback` called once when the request is over, with the tokens that were generated in all its samples;
        at once, if it is over. It is called on the engine's thread, or on that of whoever
        gives the engine up, and must neither raise nor take long."""
        self._callbacks.append(callback)
        if self._closed:
            self._call_back()

    def put(self, gains: list[Gain], is_last: bool, metrics: RequestStateStats | None = None) -> Waiter | None:
        """Takes over a step's gains, one at least (engine's thread); returns whom to wake: wake-ups can be batched.

        Args:
            metrics: what the request took, with the last of its gains.
        """
        self._metrics = metrics
        self._items.append(gains)
        if is_last:
            self._close()
        elif self._waits_for_end or len(self._items) < self._num_wanted:
            return None
        return self._waiter

    def put_error(self, error: PagedBackendError) -> Waiter | None:
        """Ends the stream with an error; see `put`."""
        self._items.append(error)
        self._close()
        return self._waiter

    def _close(self) -> None:
        self._closed = True
        self._call_back()

    def _call_back(self) -> None:
        """Whoever takes a callback out calls it: two threads may be here at once."""
        while True:
            try:
                callback = self._callbacks.popleft()
            except IndexError:
                return
            callback(self.num_generated)

    def __iter__(self) -> Iterator[RequestDelta]:
        return self

    def __next__(self) -> RequestDelta:
        if self._ended:
            raise StopIteration
        self._wait()
        return self._take()

    def __aiter__(self) -> AsyncIterator[RequestDelta]:
        return self

    async def __anext__(self) -> RequestDelta:
        if self._ended:
            raise StopAsyncIteration
        await self._wait_async()
        return self._take()

    def collect(self) -> RequestOutput:
        """Waits for the end; returns the whole output."""
        self._waits_for_end = True
        self._wait()
        return self._take_all()

    async def collect_async(self) -> RequestOutput:
        """`collect` for asyncio."""
        self._waits_for_end = True
        await self._wait_async()
        return self._take_all()

    def _is_ready(self) -> bool:
        return self._closed or (len(self._items) >= self._num_wanted and not self._waits_for_end)

    def _wait(self) -> None:
        while not self._is_ready():
            event = threading.Event()
            self._waiter = event
            if not self._is_ready():
                event.wait()
        self._waiter = None

    async def _wait_async(self) -> None:
        while not self._is_ready():
            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()
            self._waiter = loop, future
            if not self._is_ready():
                await future
        self._waiter = None

    def _take(self) -> RequestDelta:
        """The gains of the next steps as a delta."""
        if self._comes_at_once:
            self._ended = True
            return self._last(self._assembler.assemble(self._all_gains()))
        item = self._items.popleft()
        if isinstance(item, PagedBackendError):
            self._ended = True
            raise item
        if self._num_wanted > 1:
            item = self._gathered(item)
        self._num_wanted = self._interval
        delta = self._assembler.assemble(item)
        self._ended = delta.finished
        return self._last(delta) if delta.finished else delta

    def _last(self, delta: RequestDelta) -> RequestDelta:
        delta.metrics = self._metrics
        return delta

    def _take_all(self) -> RequestOutput:
        """What is left of a closed stream."""
        self._ended = True
        gains = self._all_gains()
        output = RequestOutput.empty(self.request_id, self.prompt, self.prompt_token_ids, self.n)
        if gains:
            output.extend(self._last(self._assembler.assemble(gains)))
        return output

    def _gathered(self, gains: list[Gain]) -> list[Gain]:
        """Those of further steps with them, as many steps as are wanted; an error stays for the next delta."""
        for _ in range(self._num_wanted - 1):
            if not self._items or isinstance(self._items[0], PagedBackendError):
                break
            gains = gains + cast("list[Gain]", self._items.popleft())
        return gains

    def _all_gains(self) -> list[Gain]:
        gains: list[Gain] = []
        for item in list(self._items):
            if isinstance(item, PagedBackendError):
                raise item
            gains += item
        self._items.clear()
        return gains
