"""Who has which block, asked of a running engine."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any, cast

import pytest

from paged_backend.config import EngineConfig
from paged_backend.engine.client import EngineClient
from paged_backend.engine.stats import KVMap
from paged_backend.errors import EngineUnavailableError
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import StepPlan
from tests.engine.fake_executor import FakeExecutor

TIMEOUT_S = 20


def new_client(executor: FakeExecutor, **arguments: Any) -> EngineClient:
    return EngineClient(EngineConfig.from_args(skip_tokenizer_init=True, **arguments), cast(Any, executor), None)


def map_of(client: EngineClient) -> KVMap:
    kv_map = client.stats(kv_map=True).kv_map
    assert kv_map is not None
    return kv_map


def check(kv_map: KVMap) -> None:
    owners = kv_map.owners()
    assert len(kv_map.states) == len(kv_map.num_owners) == FakeExecutor.num_blocks
    for block, (state, count) in enumerate(zip(kv_map.states, kv_map.num_owners, strict=True)):
        assert len(owners.get(block, ())) == count
        assert (state == "owned") == (count > 0)
    for sequence in kv_map.sequences:
        assert len(sequence.block_ids) * kv_map.block_size >= sequence.num_computed_tokens


def test_free_owned_shared_and_cached() -> None:
    """A request with three samples; the map is asked for by another thread while its third step waits."""
    executor = FakeExecutor()
    at_third, go_on, maps = threading.Event(), threading.Event(), []

    def before_run(plan: StepPlan) -> None:
        if len(executor.plans) == 3:
            at_third.set()
            assert go_on.wait(TIMEOUT_S)

    executor.before_run = before_run
    client = new_client(executor)
    assert set(map_of(client).states) == {"free"}
    params = SamplingParams(n=3, seed=0, max_tokens=6)
    stream = client.submit(list(range(3, 13)), params, request_id="r")
    assert at_third.wait(TIMEOUT_S)
    assert client.stats().kv_map is None
    asker = threading.Thread(target=lambda: maps.append(map_of(client)))
    asker.start()
    asker.join(0.05)
    assert asker.is_alive(), "an answer comes between two steps"
    go_on.set()
    asker.join(TIMEOUT_S)
    kv_map = maps[0]
    check(kv_map)
    # Ten tokens of prompt and three of each sample's: two full blocks are shared, a third was copied on write.
    assert [(s.request_id, s.index, s.num_computed_tokens) for s in kv_map.sequences] == [
        ("r", index, 12) for index in range(3)
    ]
    assert Counter(kv_map.num_owners) == {0: 64 - 5, 3: 2, 1: 3}
    assert Counter(kv_map.states) == {"owned": 5, "free": 64 - 5}
    stream.collect()
    kv_map = map_of(client)
    check(kv_map)
    assert Counter(kv_map.states) == {"cached": 5, "free": 64 - 5} and not kv_map.sequences
    client.shutdown()


def test_an_engine_that_has_stopped_has_no_map() -> None:
    client = new_client(FakeExecutor())
    client.shutdown()
    with pytest.raises(EngineUnavailableError):
        client.stats(kv_map=True)
    assert client.stats().kv_map is None


def test_who_asks_while_the_engine_dies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = FakeExecutor()
    inside, go_on = threading.Event(), threading.Event()

    def before_run(plan: StepPlan) -> None:
        inside.set()
        assert go_on.wait(TIMEOUT_S)

    executor.before_run = before_run
    client = new_client(executor)
    stream = client.submit([5, 6], SamplingParams(max_tokens=3))
    assert inside.wait(TIMEOUT_S)
    errors: list[Exception] = []

    def ask() -> None:
        try:
            client.stats(kv_map=True)
        except EngineUnavailableError as error:
            errors.append(error)

    def die(*_: object) -> None:
        raise RuntimeError("dead")

    asker = threading.Thread(target=ask)
    asker.start()
    monkeypatch.setattr(client._engine.core, "stats", die)
    while not client._engine.loop._inbox:
        time.sleep(0.001)
    go_on.set()
    asker.join(TIMEOUT_S)
    assert errors
    with pytest.raises(EngineUnavailableError):
        stream.collect()


def test_an_engine_that_dies_of_a_map_answers_all_who_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = FakeExecutor()
    computing, go_on, refused = threading.Event(), threading.Event(), []

    def before_run(plan: StepPlan) -> None:
        computing.set()
        assert go_on.wait(TIMEOUT_S)

    def ask() -> None:
        with pytest.raises(EngineUnavailableError, match="has died"):
            map_of(client)
        refused.append(True)

    executor.before_run = before_run
    client = new_client(executor)
    stream = client.submit([3, 4], SamplingParams(max_tokens=5))
    assert computing.wait(TIMEOUT_S)
    askers = [threading.Thread(target=ask, daemon=True) for _ in range(2)]
    for asker in askers:
        asker.start()
    wait_for_inbox(client, 2)
    monkeypatch.setattr(client._engine.core._kv, "block_states", lambda: 1 / 0)
    go_on.set()
    for asker in askers:
        asker.join(TIMEOUT_S)
    assert refused == [True, True]
    with pytest.raises(EngineUnavailableError, match="has died"):
        stream.collect()
    client.shutdown()


def wait_for_inbox(client: EngineClient, num_items: int) -> None:
    end_s = time.monotonic() + TIMEOUT_S
    while len(client._engine.loop._inbox) < num_items:
        assert time.monotonic() < end_s
        time.sleep(0.001)
