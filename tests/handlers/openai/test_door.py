"""The door as clients of a live queue see it: lists of prompts, ids, bounds. The engine computes no model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from paged_backend.config import EngineConfig
from paged_backend.engine.client import EngineClient
from paged_backend.handlers.openai.served_models import ServedModels
from paged_backend.handlers.openai.service import HttpRequest, OpenAIService
from tests.engine.fake_executor import FakeExecutor

from .conftest import Reply, gate_of, read

COMPLETIONS = "/v1/completions"
TIMEOUT_S = 20

Serve = Callable[..., OpenAIService]


@pytest.fixture
def executor() -> FakeExecutor:
    return FakeExecutor()


@pytest.fixture
def serve(executor: FakeExecutor) -> Iterator[Serve]:
    clients: list[EngineClient] = []

    def build(*api_keys: str, **engine_args: Any) -> OpenAIService:
        config = EngineConfig.from_args({"max_num_seqs": 4, "max_num_batched_tokens": 16, **engine_args})
        clients.append(EngineClient(config, cast(Any, executor), tokenizer=None))
        return OpenAIService(ServedModels.one(clients[-1], ("tiny",)), gate=gate_of(*api_keys) if api_keys else None)

    yield build
    executor.before_run = lambda plan: None
    for client in clients:
        client.shutdown()


def ask(service: OpenAIService, prompts: list[list[int]], key: str = "", **fields: Any) -> Reply:
    body = {"prompt": prompts, "max_tokens": 2, "seed": 0, **fields}
    request = HttpRequest(COMPLETIONS, body=body, headers={"authorization": f"Bearer {key}"})

    async def exchange() -> Reply:
        return await read(await service.handle(request))

    return asyncio.run(exchange())


@pytest.mark.parametrize("n", [1, 4])
def test_an_idle_server_takes_a_list_that_fits_it(serve: Serve, n: int) -> None:
    service = serve(max_num_queued_tokens=20, max_num_queued_reqs=6)
    for _ in range(3):
        assert ask(service, [[5, 6, 7]] * 10, n=n).status == 200  # four prompts, or 16 tokens, begin at once
        assert ask(service, [[5] * 100], n=n).status == 200  # one that is longer than the bound is begun at once


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([[5] * 10] * 6, "the 6 prompts have 60 tokens, of which the first step leaves 40"),
        ([[5]] * 11, "send fewer at once"),
        ([[5] * 100, [6] * 21], "the 2 prompts have 121 tokens, of which the first step leaves 21"),
    ],
)
def test_what_no_retry_would_mend_is_no_429(serve: Serve, prompts: list[list[int]], words: str) -> None:
    reply = ask(serve(max_num_queued_tokens=20, max_num_queued_reqs=6), prompts)
    assert reply.status == 400 and reply.error["param"] == "prompt" and words in reply.error["message"]
    assert "Retry-After" not in reply.headers


def test_a_busy_server_takes_it_later(serve: Serve, executor: FakeExecutor) -> None:
    service = serve(max_num_queued_tokens=20)
    go_on, inside = threading.Event(), threading.Event()

    def hold(plan: Any) -> None:
        inside.set()
        assert go_on.wait(TIMEOUT_S)

    executor.before_run = hold
    replies: list[Reply] = []
    others = threading.Thread(target=lambda: replies.append(ask(service, [[5] * 10] * 3)))
    others.start()
    assert inside.wait(TIMEOUT_S)
    refused = ask(service, [[5] * 10] * 3)
    assert refused.status == 429 and int(refused.headers["Retry-After"]) >= 1
    assert "max_num_queued_tokens" in refused.error["message"]
    go_on.set()
    others.join(TIMEOUT_S)
    assert [reply.status for reply in replies] == [200]
    assert ask(service, [[5] * 10] * 3).status == 200


def test_two_keys_may_use_one_id_at_once(serve: Serve, executor: FakeExecutor) -> None:
    service = serve("one", "two")
    go_on, inside = threading.Event(), threading.Event()

    def hold(plan: Any) -> None:
        inside.set()
        assert go_on.wait(TIMEOUT_S)

    executor.before_run = hold
    replies: list[Reply] = []
    first = threading.Thread(target=lambda: replies.append(ask(service, [[5]], "one", request_id="mine")))
    first.start()
    assert inside.wait(TIMEOUT_S)
    mine = ask(service, [[6]], "one", request_id="mine")
    assert mine.status == 400 and mine.error["param"] == "request_id"
    threading.Timer(0.05, go_on.set).start()
    other = ask(service, [[6]], "two", request_id="mine")
    first.join(TIMEOUT_S)
    assert other.status == 200 and [reply.status for reply in replies] == [200]
    assert other.json["id"] == replies[0].json["id"] == "cmpl-mine"
