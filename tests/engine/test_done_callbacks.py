"""Whoever asked to be told of a request's end is told once, with what it generated, however it ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from paged_backend.config import EngineConfig
from paged_backend.engine.client import EngineClient
from paged_backend.engine.stream import RequestStream
from paged_backend.sampling_params import SamplingParams
from tests.engine.fake_executor import FakeExecutor

TIMEOUT_S = 20


@pytest.fixture
def client() -> Iterator[EngineClient]:
    config = EngineConfig.from_args(max_num_seqs=4, max_num_batched_tokens=16)
    client = EngineClient(config, cast(Any, FakeExecutor()), tokenizer=None)
    yield client
    client.shutdown()


class Told:
    """A callback that remembers."""

    def __init__(self, stream: RequestStream) -> None:
        self.numbers: list[int] = []
        self._came = threading.Event()
        stream.add_done_callback(self)

    def __call__(self, num_generated: int) -> None:
        self.numbers.append(num_generated)
        self._came.set()

    def wait(self) -> list[int]:
        assert self._came.wait(TIMEOUT_S)
        return self.numbers


def params(**fields: Any) -> SamplingParams:
    return SamplingParams(detokenize=False, ignore_eos=True, **fields)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({"max_tokens": 5}, 5), ({"max_tokens": 5, "n": 3}, 15), ({"max_tokens": 4, "n": 1, "best_of": 3}, 12)],
)
def test_of_all_samples_also_those_that_nobody_gets(
    client: EngineClient, fields: dict[str, Any], expected: int
) -> None:
    told = Told(client.submit([5, 6], params(**fields)))
    assert told.wait() == [expected]  # nobody has read the stream


def test_one_that_is_over_tells_at_once(client: EngineClient) -> None:
    stream = client.submit([5], params(max_tokens=3))
    stream.collect()
    told = Told(stream), Told(stream)
    assert [one.numbers for one in told] == [[3], [3]]


def test_one_that_is_aborted(client: EngineClient) -> None:
    stream = client.submit([5], params(max_tokens=None))
    told = Told(stream)
    stream.abort()
    (num_generated,) = told.wait()
    assert 0 <= num_generated < client.max_model_len
    stream.abort()
    client.submit([5], params(max_tokens=1)).collect()
    assert len(told.numbers) == 1


def test_those_that_a_shutdown_ends(client: EngineClient) -> None:
    told = [Told(client.submit([5], params(max_tokens=None))) for _ in range(8)]
    client.shutdown()
    assert all(len(one.wait()) == 1 for one in told)
