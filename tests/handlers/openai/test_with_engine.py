"""The same service on a real engine with the bundled model: the scripted one must not have flattered it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator

import pytest

from paged_backend.config import EngineConfig
from paged_backend.engine.client import EngineClient
from paged_backend.handlers.openai.served_models import ServedModels
from paged_backend.handlers.openai.service import HttpRequest, OpenAIService

from .conftest import gate_of, read

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
GREEDY = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 12, "ignore_eos": True}
ENDLESS = {"prompt": "Once", "max_tokens": 1500, "ignore_eos": True}


@pytest.fixture(scope="module")
def engine() -> Iterator[EngineClient]:
    shared = [f"common {path} {num_fields}" for path in (COMPLETIONS, CHAT) for num_fields in (0, 2)]
    client = EngineClient.start(
        EngineConfig.from_args(max_num_seqs=8, max_num_queued_reqs=2, shared_cache_salts=shared)
    )
    yield client
    client.shutdown()


@pytest.fixture
def service(engine):
    return OpenAIService(ServedModels.one(engine, ("paged-tiny",)), stall_timeout_s=60.0)


def wait_until_idle(engine):
    """Waits for the engine to hold nothing: an abort takes effect between two steps."""
    deadline_s = time.monotonic() + 20
    while engine.stats().num_running or engine.stats().num_waiting:
        assert time.monotonic() < deadline_s, engine.stats()
        time.sleep(0.01)


def test_whole_and_streamed_text_agree(call):
    whole = call(COMPLETIONS, {**GREEDY, "return_token_ids": True}).json
    chunks = call(COMPLETIONS, {**GREEDY, "stream": True, "return_token_ids": True}).chunks
    choice = whole["choices"][0]
    assert len(choice["token_ids"]) == 12 and choice["finish_reason"] == "length"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == choice["text"]
    assert [token for chunk in chunks for token in chunk["choices"][0]["token_ids"]] == choice["token_ids"]
    by_ids = call(COMPLETIONS, {**GREEDY, "prompt": choice["prompt_token_ids"]}).json
    assert by_ids["choices"][0]["text"] == choice["text"]


def test_prompts_and_samples_come_in_order(call):
    texts = [call(COMPLETIONS, {**GREEDY, "prompt": prompt}).json["choices"][0]["text"] for prompt in ("One", "The")]
    together = call(COMPLETIONS, {**GREEDY, "prompt": ["One", "The"], "n": 2}).json
    assert [choice["text"] for choice in together["choices"]] == [texts[0]] * 2 + [texts[1]] * 2
    assert together["usage"]["completion_tokens"] == 48


def test_logprobs(call):
    choice = call(COMPLETIONS, {**GREEDY, "logprobs": 3}).json["choices"][0]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"] and len(logprobs["tokens"]) == 12
    for token, value, top in zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True):
        assert len(top) == 3 and value == top[token] == max(top.values()) <= 0


def test_chat(call):
    body = {"messages": [{"role": "user", "content": "Tell me a story."}], "temperature": 0, "max_tokens": 8}
    whole = call(CHAT, body).json
    streamed = call(CHAT, {**body, "stream": True}).chunks
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in streamed)
    assert text == whole["choices"][0]["message"]["content"] != ""
    rendered = call("/tokenize", {"messages": body["messages"]}).json
    assert rendered["count"] == whole["usage"]["prompt_tokens"]


def test_stop_string(call):
    full = call(COMPLETIONS, GREEDY).json["choices"][0]["text"]
    stop = full[8:12]
    choice = call(COMPLETIONS, {**GREEDY, "stop": [stop]}).json["choices"][0]
    assert choice["text"] == full[: full.index(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [10**30]}, "prompt"),
        ({"prompt": "x " * 3000}, "prompt"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"n": 9}, "n"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"allowed_token_ids": [99999]}, "allowed_token_ids"),
    ],
)
def test_what_only_the_engine_knows(call, fields, param):
    reply = call(COMPLETIONS, {**GREEDY, **fields})
    assert reply.status == 400 and reply.error["param"] == param


def test_leaving_frees_the_engine(engine, service):
    async def scenario():
        whole = asyncio.create_task(service.handle(HttpRequest(path=COMPLETIONS, body=ENDLESS)))
        response = await service.handle(HttpRequest(path=COMPLETIONS, body={**ENDLESS, "stream": True}))
        unread = await service.handle(HttpRequest(path=COMPLETIONS, body={**ENDLESS, "stream": True}))
        await response.stream.__anext__()
        assert engine.stats().num_running + engine.stats().num_waiting >= 2
        whole.cancel()
        await response.stream.aclose()
        await unread.stream.aclose()
        with pytest.raises(asyncio.CancelledError):
            await whole

    asyncio.run(scenario())
    wait_until_idle(engine)


def test_a_full_queue_sends_away(engine, service):
    async def scenario():
        requests = [asyncio.create_task(service.handle(HttpRequest(path=COMPLETIONS, body=ENDLESS))) for _ in range(14)]
        done, waiting = await asyncio.wait(requests, return_when=asyncio.FIRST_COMPLETED, timeout=60)
        replies = [await read(task.result()) for task in done]
        assert replies and all(reply.status == 429 for reply in replies)
        assert all(int(reply.headers["Retry-After"]) >= 1 for reply in replies)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(scenario())
    wait_until_idle(engine)


def test_health_and_metrics(call):
    assert call("/health").status == 200
    text = call("/metrics").body.decode()
    assert 'vllm:request_success_total{engine="0",finished_reason="abort",model_name="paged-tiny"}' in text


TENANTS = {"authorization": "Bearer one"}, {"authorization": "Bearer two"}


def cached_tokens(reply):
    """What a whole or streamed response says of its prompt, by each of the ways in which it says so."""
    if "text/event-stream" not in reply.headers["Content-Type"]:
        return [reply.json["usage"]["prompt_tokens_details"]["cached_tokens"]]
    usages = [chunk["usage"] for chunk in reply.chunks if chunk.get("usage")]
    assert usages and reply.chunks[-1]["choices"] == []
    return [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages]


@pytest.mark.parametrize("stream", [{}, {"stream": True, "stream_options": {"include_usage": True}}])
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_tenants_with_the_same_prompt_share_nothing(call, engine, path, stream):
    locked = OpenAIService(ServedModels.one(engine, ("paged-tiny",)), gate=gate_of("one", "two"))
    text = f"{len(stream)}{path} has a prompt that nobody else has sent to this engine: once upon a time there was."
    prompt = {"prompt": text} if path == COMPLETIONS else {"messages": [{"role": "user", "content": text}]}
    body = {**prompt, **stream, "max_tokens": 4, "temperature": 0}

    def ask(headers, **fields):
        hits = engine.stats().prefix_cache_hits
        found = cached_tokens(call(path, {**body, **fields}, headers=headers, service=locked))
        assert set(found) == {engine.stats().prefix_cache_hits - hits}
        return found[0]

    assert [ask(headers) for headers in TENANTS] == [0, 0]
    first, second = (ask(headers) for headers in TENANTS)
    assert first == second > 0
    assert [ask(headers, cache_salt="agreed") for headers in TENANTS] == [0, 0]
    assert [ask(headers, cache_salt=f"common {path} {len(stream)}") for headers in TENANTS] == [0, first]


def test_usage_in_every_chunk_tells_the_cached_tokens(call):
    body = {**GREEDY, "prompt": "Twice the same prompt, so that it is found the second time, whatever comes.", "n": 2}
    options = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    call(COMPLETIONS, body)
    found = cached_tokens(call(COMPLETIONS, {**body, **options}))
    assert len(found) > 12 and set(found) == {max(found)} and max(found) > 0


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_that_passes_and_one_that_cannot_be_met(call, engine, path, stream):
    prompt = {"prompt": "Once"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "Once"}]}
    body = {**prompt, "max_tokens": 1500, "stream": stream}
    reply = call(path, {**body, "timeout_s": 0.5, "stop": ["never said by anyone"], "ignore_eos": True})
    assert reply.status == 200
    choice = reply.chunks[-1]["choices"][0] if stream else reply.json["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("abort", "timeout")
    wait_until_idle(engine)
    reply = call(path, {**body, "timeout_s": 0.001, "ignore_eos": True})
    assert reply.status == 400 and reply.error["param"] == "timeout_s" and "Retry-After" not in reply.headers
    assert "cannot be met" in reply.error["message"] and "Allow more time" in reply.error["message"]
    assert call(path, {**body, "timeout_s": 0}).error["param"] == "timeout_s"
    assert call(path, {**body, "timeout_s": "1"}).error["param"] == "body.timeout_s"


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_usage_counts_all_samples_of_best_of_and_the_beams_that_come_back(call, path):
    prompt = {"prompt": "Once"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "Once"}]}
    body = {**prompt, "max_tokens": 5, "ignore_eos": True}
    for n, fields, counted in ((2, {}, 2), (1, {"best_of": 4}, 4), (2, {"best_of": 4, "use_beam_search": True}, 2)):
        reply = call(path, {**body, "n": n, **fields}).json
        usage = reply["usage"]
        assert len(reply["choices"]) == n
        assert usage["completion_tokens"] == 5 * counted
        assert usage["total_tokens"] == usage["prompt_tokens"] + 5 * counted


def test_structured_outputs(call):
    """Whole and streamed; and what only the compiler can refuse is a 400 in both cases."""
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    asked = {"messages": [{"role": "user", "content": "Hi"}], "response_format": wanted, "max_tokens": 60, "seed": 1}
    answer = call(CHAT, asked).json["choices"][0]
    assert json.loads(answer["message"]["content"]) in ({"a": 1}, {"a": 2}) and answer["finish_reason"] == "stop"
    chunks = call(CHAT, {**asked, "stream": True}).chunks
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == answer["message"]["content"]
    refused = {"prompt": "x", "response_format": {**wanted, "json_schema": {"name": "a", "schema": {"not": {}}}}}
    for stream in (False, True):
        response = call(COMPLETIONS, {**refused, "stream": stream})
        assert response.status == 400 and response.json["error"]["param"] == "response_format"
        assert "not" in response.json["error"]["message"]
        long = {"prompt": "x", "stream": stream, "structured_outputs": {"regex": "a" * 200_000}}
        assert call(COMPLETIONS, long).json["error"]["param"] == "structured_outputs"
