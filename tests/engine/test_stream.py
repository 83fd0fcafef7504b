"""No wake-up is lost between the engine's thread and a reader, and nothing is lost or told twice."""

from __future__ import annotations

import asyncio
import random
import threading
import time

import pytest

from paged_backend.engine.detokenizer import Finish
from paged_backend.engine.request import EngineRequest, Gain, PromptFacts
from paged_backend.engine.stream import RequestStream
from paged_backend.errors import RequestFailedError
from paged_backend.sampling_params import SamplingParams

NUM_TOKENS = 400
TIMEOUT_S = 60


def new_stream(n: int = 1) -> RequestStream:
    request = EngineRequest("r", [1, 2], SamplingParams(n=n, max_tokens=NUM_TOKENS))
    return RequestStream(request, None, None, lambda stream: None)


def gain(token_id: int, index: int = 0, *, last: bool = False) -> Gain:
    return (index, token_id, None, None, Finish("length") if last else None, PromptFacts())


def put(stream: RequestStream, gains: list[Gain], is_last: bool) -> None:
    """What the engine's loop does."""
    waiter = stream.put(gains, is_last)
    if isinstance(waiter, threading.Event):
        waiter.set()
    elif waiter is not None:
        loop, future = waiter
        loop.call_soon_threadsafe(lambda: future.done() or future.set_result(None))


def produce(stream: RequestStream, seed: int) -> threading.Thread:
    def run() -> None:
        rng = random.Random(seed)
        for token_id in range(NUM_TOKENS):
            last = token_id == NUM_TOKENS - 1
            put(stream, [gain(token_id, last=last)], last)
            if rng.random() < 0.5:
                time.sleep(rng.random() * 2e-4)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("seed", range(4))
def test_a_thread_reads_everything_in_order(seed: int) -> None:
    stream = new_stream()
    producer = produce(stream, seed)
    deltas = list(stream)
    producer.join()
    assert [delta.outputs[0].token_ids for delta in deltas] == [(i,) for i in range(NUM_TOKENS)]
    assert [delta.finished for delta in deltas] == [False] * (NUM_TOKENS - 1) + [True]
    assert list(stream) == []


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("seed", range(4))
def test_a_task_reads_everything_in_order(seed: int) -> None:
    async def read() -> list[int]:
        stream = new_stream()
        producer = produce(stream, seed)
        tokens = [delta.outputs[0].token_ids[0] async for delta in stream]
        producer.join()
        return tokens

    assert asyncio.run(read()) == list(range(NUM_TOKENS))


@pytest.mark.timeout(TIMEOUT_S)
def test_collecting_waits_for_the_end_and_takes_what_is_left() -> None:
    stream = new_stream()
    producer = produce(stream, 0)
    first = next(stream).outputs[0].token_ids
    rest = stream.collect().outputs[0]
    producer.join()
    assert [*first, *rest.token_ids] == list(range(NUM_TOKENS)) and rest.finish_reason == "length"

    async def collect() -> list[int]:
        other = new_stream()
        thread = produce(other, 1)
        output = await other.collect_async()
        thread.join()
        return output.outputs[0].token_ids

    assert asyncio.run(collect()) == list(range(NUM_TOKENS))


def test_who_collects_is_woken_once() -> None:
    stream = new_stream()
    thread = threading.Thread(target=stream.collect)
    thread.start()
    while stream._waiter is None:
        time.sleep(0.001)
    assert stream.put([gain(1)], False) is None
    waiter = stream.put([gain(2, last=True)], True)
    assert isinstance(waiter, threading.Event)
    waiter.set()
    thread.join()


def test_a_steps_samples_are_one_delta() -> None:
    stream = new_stream(n=3)
    put(stream, [gain(10, 0), gain(11, 1), gain(12, 2)], False)
    put(stream, [gain(20, 0, last=True), gain(22, 2)], False)
    put(stream, [gain(31, 1, last=True), gain(32, 2, last=True)], True)
    shapes = [[(output.index, *output.token_ids) for output in delta.outputs] for delta in stream]
    assert shapes == [[(0, 10), (1, 11), (2, 12)], [(0, 20), (2, 22)], [(1, 31), (2, 32)]]


def test_steps_that_gain_in_turn_are_deltas_of_their_own() -> None:
    """A preempted sample: each step gains for one of the two alone, and the reader lags."""
    stream = new_stream(n=2)
    put(stream, [gain(10, 0)], False)
    put(stream, [gain(11, 1)], False)
    put(stream, [gain(20, 0, last=True)], False)
    put(stream, [gain(21, 1, last=True)], True)
    shapes = [[(output.index, *output.token_ids) for output in delta.outputs] for delta in stream]
    assert shapes == [[(0, 10)], [(1, 11)], [(0, 20)], [(1, 21)]]


def test_an_error_comes_after_what_was_gained() -> None:
    stream = new_stream()
    put(stream, [gain(1)], False)
    stream.put_error(RequestFailedError("no"))
    assert next(stream).outputs[0].token_ids == (1,)
    with pytest.raises(RequestFailedError):
        next(stream)
    assert list(stream) == []
    stream = new_stream()
    put(stream, [gain(1)], False)
    stream.put_error(RequestFailedError("no"))
    with pytest.raises(RequestFailedError):
        stream.collect()
