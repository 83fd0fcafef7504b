"""Whose prefixes are shared with whom: told by counters, never by time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from paged_backend.config import EngineConfig
from paged_backend.engine.client import EngineClient
from paged_backend.engine.request import request_key
from paged_backend.errors import InvalidRequestError
from paged_backend.sampling_params import SamplingParams
from tests.engine.fake_executor import FakeExecutor

PROMPT = list(range(3, 43))  # ten blocks of the fake executor; the last token is always computed
FOUND = 36
TIMEOUT_S = 20

Ask = Callable[..., int]


@pytest.fixture
def client() -> Iterator[EngineClient]:
    config = EngineConfig.from_args(shared_cache_salts=["system-prompt", "x"], scheduling_policy="fair")
    client = EngineClient(config, cast(Any, FakeExecutor()), tokenizer=None)
    yield client
    client.shutdown()


@pytest.fixture
def ask(client: EngineClient) -> Ask:
    """Sends the prompt; returns how many of its tokens were found, as the request and as the engine tell it."""

    def ask(tenant: str | None = None, cache_salt: str | None = None) -> int:
        before = client.stats()
        params = SamplingParams(max_tokens=2, seed=0)
        output = client.submit(PROMPT, params, tenant=tenant, cache_salt=cache_salt).collect()
        after = client.stats()
        assert after.prefix_cache_queries - before.prefix_cache_queries == len(PROMPT)
        assert after.prefix_cache_hits - before.prefix_cache_hits == output.num_cached_tokens
        return output.num_cached_tokens

    return ask


def test_two_tenants_share_nothing(client: EngineClient, ask: Ask) -> None:
    assert [ask("a"), ask("b"), ask()] == [0, 0, 0]
    assert [ask("a"), ask("b"), ask()] == [FOUND] * 3
    text = client.metrics_text()
    labels = '{engine="0",model_name="paged-tiny"}'
    assert f"vllm:prefix_cache_queries_total{labels} {6.0 * len(PROMPT)}" in text
    assert f"vllm:prefix_cache_hits_total{labels} {3.0 * FOUND}" in text
    assert f"vllm:prompt_tokens_cached_total{labels} {3.0 * FOUND}" in text


def test_a_salt_divides_a_tenant_and_joins_no_others(ask: Ask) -> None:
    assert [ask("a", "s"), ask("b", "s"), ask("a"), ask(None, "s")] == [0, 0, 0, 0]
    assert [ask("a", "s"), ask("b", "s"), ask("a", "t")] == [FOUND, FOUND, 0]


def test_a_salt_that_the_operator_shares_joins_tenants(ask: Ask) -> None:
    assert [ask("a", "system-prompt"), ask("b", "system-prompt"), ask(None, "system-prompt")] == [0, FOUND, FOUND]
    # Not those who do not ask for it, and not under another shared salt.
    assert [ask("a"), ask("b"), ask("b", "x")] == [0, 0, 0]


@pytest.mark.parametrize("name", ["a", '", "', "null", "", '["a", null]', "[null, null]"])
def test_no_name_leads_into_anothers_scope(ask: Ask, name: str) -> None:
    for tenant, salt in [(None, None), ("a", None), ("a", "b"), (None, "system-prompt")]:
        ask(tenant, salt)
    found = [ask(name, "z"), ask(None, name)]
    assert found == [0, 0]


@pytest.mark.parametrize(("who", "end"), [("b", "length"), ("a", "abort"), (None, "abort")])
def test_a_tenant_aborts_its_own_requests_alone(client: EngineClient, who: str | None, end: str) -> None:
    go_on = threading.Event()
    cast(FakeExecutor, client._engine.core._executor).before_run = lambda plan: cast(None, go_on.wait(TIMEOUT_S))
    stream = client.submit(PROMPT, SamplingParams(max_tokens=20, seed=0), tenant="a", request_id="r")
    client.abort("r", tenant=who)
    go_on.set()
    assert stream.collect().outputs[0].finish_reason == end


def test_an_id_is_a_tenants_own(client: EngineClient) -> None:
    """Nobody learns of another's ids, by a refusal or otherwise, and nobody ends what another calls the same."""
    go_on = threading.Event()
    cast(FakeExecutor, client._engine.core._executor).before_run = lambda plan: cast(None, go_on.wait(TIMEOUT_S))
    params = SamplingParams(max_tokens=20, seed=0)
    streams = {tenant: client.submit(PROMPT, params, tenant=tenant, request_id="r") for tenant in ("a", "b", None)}
    for tenant in streams:
        with pytest.raises(InvalidRequestError, match="'r' is already in use") as raised:
            client.submit(PROMPT, params, tenant=tenant, request_id="r")
        assert raised.value.param == "request_id"
    client.abort("r", tenant="b")
    client.abort("r", tenant="c")
    go_on.set()
    outputs = {tenant: stream.collect() for tenant, stream in streams.items()}
    assert [output.outputs[0].finish_reason for output in outputs.values()] == ["length", "abort", "length"]
    assert {output.request_id for output in outputs.values()} == {"r"}


def test_an_operators_abort_ends_all_of_that_id(client: EngineClient) -> None:
    go_on = threading.Event()
    cast(FakeExecutor, client._engine.core._executor).before_run = lambda plan: cast(None, go_on.wait(TIMEOUT_S))
    params = SamplingParams(max_tokens=20, seed=0)
    streams = [client.submit(PROMPT, params, tenant=tenant, request_id="r") for tenant in ("a", None)]
    client.abort("r")
    go_on.set()
    assert [stream.collect().outputs[0].finish_reason for stream in streams] == ["abort", "abort"]


@pytest.mark.parametrize(("first", "second"), [(("a", 'b", "c'), ('a", "b', "c")), (("", '["a", "r"]'), ("a", "r"))])
def test_no_two_pairs_have_one_key(first: tuple[str, str], second: tuple[str, str]) -> None:
    assert request_key(*first) != request_key(*second)
