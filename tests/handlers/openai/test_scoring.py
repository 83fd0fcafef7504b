"""Log-probabilities of prompts on the wire: OpenAI's form beside echo, vLLM's own, whole and streamed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from paged_backend import SamplingParams
from paged_backend.config import EngineConfig
from paged_backend.engine.client import EngineClient
from paged_backend.handlers.openai.served_models import ServedModels
from paged_backend.handlers.openai.service import OpenAIService

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def engine() -> Iterator[EngineClient]:
    client = EngineClient.start(EngineConfig.from_args(max_num_seqs=8, max_model_len=128, num_threads=1))
    yield client
    client.shutdown()


@pytest.fixture
def real_call(call: Any, engine: EngineClient) -> Any:
    service = OpenAIService(ServedModels.one(engine, ("paged-tiny",)))
    return lambda path, body: call(path, body, service=service)


def test_echo_with_logprobs_in_openais_form(call: Any) -> None:
    body = {"prompt": "ab", "echo": True, "logprobs": 1, "max_tokens": 2, "add_special_tokens": False}
    choice = call(COMPLETIONS, body).json["choices"][0]
    assert choice["text"] == "abHi"
    assert choice["logprobs"] == {
        "tokens": ["a", "b", "H", "i"],
        "token_logprobs": [None, -1.0, -1.5, -1.5],
        "top_logprobs": [None, {"b": -1.0}, {"b": -0.5, "H": -1.5}, {"b": -0.5, "i": -1.5}],
        "text_offset": [0, 1, 2, 3],
    }


@pytest.mark.parametrize("max_tokens", [0, 1, 3])
@pytest.mark.parametrize("n", [1, 2])
def test_streams_say_the_same(call: Any, max_tokens: int, n: int) -> None:
    body = {"prompt": ["abc", "d"], "echo": True, "logprobs": 2, "max_tokens": max_tokens, "n": n}
    whole = call(COMPLETIONS, body).json
    assert whole["usage"]["completion_tokens"] == 2 * n * max_tokens
    said: dict[int, dict[str, Any]] = {}
    for chunk in call(COMPLETIONS, {**body, "stream": True}).chunks:
        (choice,) = chunk["choices"]
        mine = said.setdefault(choice["index"], {"text": "", "logprobs": {}, "ends": []})
        mine["text"] += choice["text"]
        mine["ends"].append(choice["finish_reason"])
        for name, column in choice["logprobs"].items():
            mine["logprobs"].setdefault(name, []).extend(column)
    for choice in whole["choices"]:
        mine = said[choice["index"]]
        assert (mine["text"], mine["logprobs"], mine["ends"][-1]) == (choice["text"], choice["logprobs"], "length")


def test_prompt_logprobs_in_vllms_form(call: Any, client: Any) -> None:
    body = {"prompt": "ab", "prompt_logprobs": 1, "n": 2}
    for choice in call(COMPLETIONS, body).json["choices"]:
        a, b = (str(ord(letter)) for letter in "ab")
        first = {"logprob": -2.0, "rank": 2, "decoded_token": "a"}
        best = {"logprob": -1.0, "rank": 1, "decoded_token": "b"}
        assert choice["prompt_logprobs"] == [None, {b: best, a: first}, {b: best}] and choice["logprobs"] is None
    reply = call(CHAT, {"messages": [{"role": "user", "content": "x"}], "prompt_logprobs": 0}).json
    assert len(reply["prompt_logprobs"]) == reply["usage"]["prompt_tokens"] and reply["prompt_logprobs"][0] is None
    assert all(len(entry) == 1 for entry in reply["prompt_logprobs"][1:])
    assert "prompt_logprobs" not in call(COMPLETIONS, {"prompt": "ab"}).json["choices"][0]
    assert [each["params"].prompt_logprobs for each in client.submissions] == [1, 0, None]


def test_the_harness_gets_what_it_reads(real_call: Any, engine: EngineClient) -> None:
    """lm-evaluation-harness's local-completions: token ids, echo, one logprob, one token, and what lies before it."""
    (stream,) = [engine.submit(PROMPT, SamplingParams(max_tokens=1, prompt_logprobs=1, temperature=0))]
    ids = stream.prompt_token_ids
    expected = stream.collect().prompt_logprobs
    assert expected is not None
    body = {"model": "paged-tiny", "prompt": [ids], "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234}
    (choice,) = real_call(COMPLETIONS, {**body, "echo": True}).json["choices"]
    columns = choice["logprobs"]
    values, tops = columns["token_logprobs"][1:-1], columns["top_logprobs"][1:-1]
    assert len(values) == len(ids) - 1 and columns["token_logprobs"][0] is None
    for value, top, entry, token in zip(values, tops, expected[1:], ids[1:], strict=True):
        assert entry is not None
        assert value == entry[token].logprob and (value == max(top.values())) == (entry[token].rank == 1)
        assert set(top.values()) == {candidate.logprob for candidate in entry.values()}
    (scored,) = real_call(COMPLETIONS, {**body, "echo": True, "max_tokens": 0}).json["choices"]
    assert scored["logprobs"]["token_logprobs"] == columns["token_logprobs"][:-1]
    assert scored["text"] == "".join(scored["logprobs"]["tokens"]) == PROMPT and scored["finish_reason"] == "length"
    assert [scored["text"][start : start + 1] for start in scored["logprobs"]["text_offset"]] == [
        token[:1] for token in scored["logprobs"]["tokens"]
    ]


def test_a_prompt_that_fills_the_context(real_call: Any) -> None:
    body = {"prompt": [5] * 128, "echo": True, "logprobs": 0}
    reply = real_call(COMPLETIONS, {**body, "max_tokens": 0}).json
    assert len(reply["choices"][0]["logprobs"]["tokens"]) == 128
    assert reply["usage"] == {
        "prompt_tokens": 128, "completion_tokens": 0, "total_tokens": 128, "prompt_tokens_details": {"cached_tokens": 0}
    }  # fmt: skip
    assert real_call(COMPLETIONS, {**body, "max_tokens": 1}).status == 400
    assert real_call(COMPLETIONS, {**body, "prompt": [5] * 129, "max_tokens": 0}).status == 400


def test_echo_alone_needs_no_token(real_call: Any) -> None:
    (choice,) = real_call(COMPLETIONS, {"prompt": PROMPT, "echo": True, "max_tokens": 0}).json["choices"]
    assert (choice["text"], choice["logprobs"], choice["finish_reason"]) == (PROMPT, None, "length")


def test_tokens_asked_for_by_id(real_call: Any) -> None:
    ids = [7, 300, 11]
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 4, "logprobs": 5, "return_tokens_as_token_ids": True}
    plain = real_call(COMPLETIONS, body).json["choices"][0]
    asked = real_call(COMPLETIONS, {**body, "logprob_token_ids": ids}).json["choices"][0]
    assert asked["text"] == plain["text"]
    assert asked["logprobs"]["token_logprobs"] == plain["logprobs"]["token_logprobs"]
    names = {f"token_id:{token}" for token in ids}
    for token, top in zip(asked["logprobs"]["tokens"], asked["logprobs"]["top_logprobs"], strict=True):
        assert set(top) == names | {token} and all(value <= 0 for value in top.values())
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "logprob_token_ids": ids}
    content = real_call(CHAT, {**chat, "logprobs": True}).json["choices"][0]["logprobs"]["content"]
    assert all(3 <= len(item["top_logprobs"]) <= 4 for item in content)
    streamed = real_call(CHAT, {**chat, "logprobs": True, "stream": True}).chunks[-1]["choices"][0]
    assert 3 <= len(streamed["logprobs"]["content"][0]["top_logprobs"]) <= 4
    assert real_call(CHAT, chat).error["param"] == "logprob_token_ids"


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_what_the_operator_allows(call: Any, engine: EngineClient, path: str) -> None:
    whole = path == CHAT
    content = {"messages": [{"role": "user", "content": "Hi"}]} if whole else {"prompt": "Hi"}
    field = "top_logprobs" if whole else "logprobs"
    config = EngineConfig.from_args(max_logprobs=-1, max_model_len=64, num_threads=1)
    client = EngineClient.start(config)
    try:
        service = OpenAIService(ServedModels.one(client, ("paged-tiny",)))
        body = {**content, "max_tokens": 1, field: -1, **({"logprobs": True} if whole else {})}
        logprobs = call(path, body, service=service).json["choices"][0]["logprobs"]
        top = logprobs["content"][0]["top_logprobs"] if whole else logprobs["top_logprobs"][0]
        values = [item["logprob"] for item in top] if whole else list(top.values())
        assert len(values) >= 1000 and sum(map(math.exp, values)) == pytest.approx(1, abs=0.02)
    finally:
        client.shutdown()
    refused = call(path, body, service=OpenAIService(ServedModels.one(engine, ("paged-tiny",))))
    assert refused.status == 400 and refused.error["param"] == field and "0..20" in refused.error["message"]
