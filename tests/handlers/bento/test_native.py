"""The native API between BentoML and the engine: the OpenAI routes' own checks, and a free event loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from paged_backend.errors import InvalidRequestError
from paged_backend.handlers.access.gate import Caller
from paged_backend.handlers.access.limits import KeyLimits
from paged_backend.handlers.access.quota import LimitError, Quota
from paged_backend.handlers.bento import native
from paged_backend.handlers.bento.edge import Exchange
from paged_backend.handlers.bento.native_types import ChatMessage, GenerateRequest
from paged_backend.handlers.openai.access_log import AccessLog
from tests.handlers.openai.conftest import FakeClient

MESSAGE = {"role": "user", "content": "x"}


def submit(client: FakeClient, **fields: Any) -> dict[str, Any]:
    asyncio.run(native.submit(client, GenerateRequest(**fields), Exchange(Caller("me", "me"))))  # type: ignore[arg-type]
    return client.submissions[0]


@pytest.mark.parametrize(
    ("fields", "token_ids"),
    [
        ({"prompt": "ab"}, [1, 97, 98]),
        ({"prompt": "ab", "add_special_tokens": False}, [97, 98]),
        ({"prompt_token_ids": [5, 6]}, [5, 6]),
        ({"messages": [MESSAGE]}, [ord(character) for character in "[user]x[assistant]"]),
    ],
)
def test_the_engine_gets_token_ids(fields: dict[str, Any], token_ids: list[int]) -> None:
    assert submit(FakeClient(), **fields)["prompt"] == token_ids


@pytest.mark.parametrize("fields", [{"prompt": "a" * 5000}, {"messages": [{**MESSAGE, "content": "a" * 5000}]}])
def test_a_long_prompt_is_encoded_beside_the_event_loop(fields: dict[str, Any]) -> None:
    client = FakeClient(max_model_len=10_000)
    threads = []
    assert client.tokenizer is not None
    encode = client.tokenizer.encode

    def record(text: str, add_special_tokens: bool = True) -> list[int]:
        threads.append(threading.current_thread())
        return encode(text, add_special_tokens)

    client.tokenizer.encode = record  # type: ignore[method-assign]
    submit(client, **fields)
    assert threads and threading.main_thread() not in threads


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "x", "logprobs": -2}, "logprobs"),
        ({"prompt": "x", "request_id": "a\nb"}, "request_id"),
        ({"prompt": "x", "priority": 2**63}, "priority"),
        ({"prompt": "x", "cache_salt": "\ud800"}, "cache_salt"),
        ({"prompt": "x", "stop": "\ud800"}, "stop"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": "x" * 101}, "prompt"),
        ({"prompt_token_ids": [1] * 101}, "prompt_token_ids"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content"),
        ({"messages": [MESSAGE] * 101}, "messages"),
        ({"messages": []}, "messages"),
    ],
)
def test_refusals(fields: dict[str, Any], param: str) -> None:
    client = FakeClient()
    client.config = client.config.from_args(scheduling_policy="priority")
    # Past pydantic, which refuses some of them in its own words where it reads JSON.
    if "messages" in fields:
        fields = {"messages": [ChatMessage.model_construct(**message) for message in fields["messages"]]}
    request = GenerateRequest.model_construct(**{**GenerateRequest().model_dump(), **fields})
    with pytest.raises(InvalidRequestError) as caught:
        asyncio.run(native.submit(client, request, Exchange()))  # type: ignore[arg-type]
    assert caught.value.param == param and not client.submissions


def test_without_a_tokenizer() -> None:
    client = FakeClient(tokenizer=None)
    with pytest.raises(InvalidRequestError, match="send token ids"):
        submit(client, prompt="x")
    assert submit(client, prompt_token_ids=[5])["prompt"] == [5]


def test_the_engines_refusal_names_the_field() -> None:
    client = FakeClient(submit_errors={0: InvalidRequestError("no", param="prompt")})
    with pytest.raises(InvalidRequestError) as caught:
        submit(client, prompt_token_ids=[5])
    assert caught.value.param == "prompt_token_ids"


def test_a_request_takes_from_its_keys_quota_and_is_logged_without_its_prompt() -> None:
    lines: list[str] = []
    quota = Quota(KeyLimits(max_concurrent_requests=1), "ann")
    client = FakeClient()

    async def scenario() -> None:
        record = AccessLog(write=lambda line, _: lines.append(line)).begin("POST", "/generate")
        exchange = Exchange(Caller("ann", "tenant", quota), record)
        stream = await native.submit(client, GenerateRequest(prompt="secret"), exchange)
        assert quota.num_live == 1
        with pytest.raises(LimitError):
            await native.submit(client, GenerateRequest(prompt="x"), Exchange(exchange.caller))
        await native.collect(stream)
        assert quota.num_live == 0
        record.response_ends(200)

    asyncio.run(scenario())
    (line,) = lines
    assert f"id={client.submissions[0]['request_id']} " in line and "prompt_tokens=7 output_tokens=3" in line
    assert "secret" not in line


@pytest.mark.parametrize(("asked", "given"), [(None, 7), (100, 7), (5, 5)])
def test_the_operators_bound_holds_here_too(asked: int | None, given: int) -> None:
    client = FakeClient(default_sampling_params={"max_tokens": 7, "temperature": 0.5})
    assert submit(client, prompt="abc", max_tokens=asked)["params"].max_tokens == given
    assert submit(FakeClient(), prompt="abc", max_tokens=asked)["params"].max_tokens == asked
