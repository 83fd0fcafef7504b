"""The card: streams whose work is done late, memory that is somebody else's once it is given back, recorded graphs."""

from __future__ import annotations

import gc
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from random import Random
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

GARBAGE = 0x7F
"""Each byte of memory that nobody has written since it was taken, or that is given back."""

Work = Callable[[], object]


class Stream:
    """Work in order. It is done when the host waits for it, or by chance."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self.queue: deque[Work | Event] = deque()

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(self.card.new_event(other))

    def wait_event(self, event: Event) -> None:
        self.card.order(event, self)

    def synchronize(self) -> None:
        self.card.note("synchronize")
        self.card.finish(self.card.new_event(self))


class Event:
    """A place in a stream's queue."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self.stream: Stream | None = None
        self.happened = True  # one that was never recorded is not waited for
        self.of: _Happened | None = None

    def record(self, stream: Stream | None = None) -> None:
        self.stream = self.card.current if stream is None else stream
        self.happened = False
        self.of = _Happened(self)
        self.stream.queue.append(self.of)

    def synchronize(self) -> None:
        self.card.note("event.synchronize")
        self.card.finish(self)

    def query(self) -> bool:
        return self.happened

    def wait(self, stream: Stream | None = None) -> None:
        (self.card.current if stream is None else stream).wait_event(self)

    def elapsed_time(self, end: Event) -> float:
        assert self.happened and end.happened, "an event that has not happened has no time"
        return 1.0


class _Happened:
    def __init__(self, event: Event) -> None:
        self._event = weakref.ref(event)

    def __call__(self) -> None:
        event = self._event()
        if event is not None and event.of is self:  # else it was recorded again
            event.happened = True


class Block:
    """Memory of a tensor and its views."""

    def __init__(self, card: Card, held: Tensor) -> None:
        self.held = held.detach()
        self.num_bytes = held.untyped_storage().nbytes()
        card.take(self.num_bytes)
        stream = card.current
        graph = card.recording
        if graph is not None:
            graph.alive[held.untyped_storage().data_ptr()] = self.held
        weakref.finalize(self, card.give_back, self.held, self.num_bytes, stream, graph)


class Graph:
    """Work that was recorded instead of being done."""

    def __init__(self) -> None:
        self.works: list[Work] = []
        self.blocks: list[Tensor] = []
        self.alive: dict[int, Tensor] = {}
        self.shared: list[Graph] = []
        self.is_over = False

    def pool(self) -> list[Graph]:
        return self.shared

    def replay(self) -> None:
        card = Card.active
        assert card is not None and self.is_over
        card.num_replays += 1
        # Recordings that share memory have left in it what they liked.
        for other in self.shared:
            for held in other.blocks:
                card.order(lambda held=held: fill_with_garbage(held))  # type: ignore[misc]
        for work in self.works:
            card.order(work)


class Recording(AbstractContextManager[None]):
    """torch.cuda.graph."""

    def __init__(self, graph: Graph, pool: list[Graph] | None = None) -> None:
        self._graph = graph
        graph.shared = [] if pool is None else pool
        graph.shared.append(graph)

    def __enter__(self) -> None:
        card = Card.active
        assert card is not None and card.recording is None
        gc.collect()
        card.synchronize()
        self._before, card.current = card.current, Stream(card)
        card.recording = self._graph
        card.graphs.append(self._graph)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        card = Card.active
        assert card is not None
        card.recording, card.current = None, self._before
        self._graph.is_over = True


class Card:
    """Attributes:
    waits: how often, and for what, the host has waited for the card, or would have.
    launches: names of kernels and operations, as they were ordered.
    total_bytes, live_bytes, peak_bytes: of its memory.
    laziness: the chance that work is not done when it is ordered.
    fault: raised by whatever the host asks from now on: a card that is lost.
    """

    active: Card | None = None

    def __init__(self, seed: int = 0, *, total_bytes: int = 2**33, laziness: float = 1.0) -> None:
        self.rng = Random(seed)
        self.laziness = laziness
        self.main = self.current = Stream(self)
        self.streams: weakref.WeakSet[Stream] = weakref.WeakSet([self.main])
        self.recording: Graph | None = None
        self.graphs: list[Graph] = []
        self.waits: list[str] = []
        self.launches: list[str] = []
        self.num_replays = 0
        self.total_bytes = total_bytes
        self.live_bytes = self.peak_bytes = 0
        self.fault: Exception | None = None

    def new_stream(self, *args: Any, **kwargs: Any) -> Stream:
        stream = Stream(self)
        self.streams.add(stream)
        return stream

    def new_event(self, stream: Stream | None = None) -> Event:
        event = Event(self)
        event.record(stream)
        return event

    def note(self, wait: str) -> None:
        """The host waits."""
        self.check()
        assert self.recording is None, f"{wait} while a graph is recorded"
        self.waits.append(wait)

    def check(self) -> None:
        if self.fault is not None:
            raise self.fault

    def order(self, work: Work | Event, stream: Stream | None = None) -> None:
        """Puts work at the end of a stream, or into the graph that is recorded."""
        self.check()
        stream = self.current if stream is None else stream
        if self.recording is not None and stream is self.current:
            assert not isinstance(work, Event)
            self.recording.works.append(work)
            return
        stream.queue.append(work)
        while self.rng.random() >= self.laziness and self._do_one(self.rng.choice(list(self.streams))):
            pass

    def finish(self, event: Event) -> None:
        """Does what an event waits for, and by chance some more, in any order that is allowed."""
        while not event.happened:
            assert event.stream is not None
            stream: Stream = event.stream
            if self.rng.random() >= self.laziness:
                stream = self.rng.choice(list(self.streams))
            while stream.queue and isinstance(stream.queue[0], Event) and not stream.queue[0].happened:
                blocker = stream.queue[0].stream
                assert blocker is not None
                stream = blocker
            if not self._do_one(stream):
                assert stream is not event.stream, "waited for what nobody does"

    def synchronize(self) -> None:
        """Does everything."""
        for stream in list(self.streams):
            self.finish(self.new_event(stream))

    def check_room(self, num_bytes: int) -> None:
        if self.live_bytes + num_bytes > self.total_bytes:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {num_bytes} bytes.\nMore words.")

    def take(self, num_bytes: int) -> None:
        self.check_room(num_bytes)
        self.live_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def give_back(self, held: Tensor, num_bytes: int, stream: Stream, graph: Graph | None) -> None:
        """Who takes the memory next on its stream may write to it at once; in a graph, while that is replayed."""
        self.live_bytes -= num_bytes
        if graph is None:
            stream.queue.append(lambda: fill_with_garbage(held))
        elif not graph.is_over:
            del graph.alive[held.untyped_storage().data_ptr()]
            graph.blocks.append(held)
            graph.works.append(lambda: fill_with_garbage(held))
        else:
            graph.blocks.append(held)  # the pool's, and the next recording's

    def _do_one(self, stream: Stream) -> bool:
        if not stream.queue:
            return False
        work = stream.queue[0]
        if isinstance(work, Event):
            if not work.happened:
                return False
        else:
            with torch.inference_mode():
                work()
        stream.queue.popleft()
        return True


def fill_with_garbage(held: Tensor) -> None:
    """As it is after somebody else has had it."""
    storage = held.untyped_storage()
    torch.empty(0, dtype=torch.uint8).set_(storage).fill_(GARBAGE)  # type: ignore[call-overload]
