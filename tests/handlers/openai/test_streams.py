"""Server-sent events: their frames, their ends, and who stops the engine."""

from __future__ import annotations

import asyncio
import gc
import json

import pytest

from paged_backend.errors import EngineUnavailableError
from paged_backend.handlers.openai.service import HttpRequest

PATH = "/v1/completions"
BODY = {"prompt": "x", "stream": True}


def open_stream(service, body=BODY):
    """The response, its stream not begun."""
    return service.handle(HttpRequest(path=PATH, body=body))


def test_frames(call):
    reply = call(PATH, BODY)
    assert reply.headers["Cache-Control"] == "no-cache"
    chunks = reply.chunks
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["H", "i", "0"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]} and chunks[0]["id"].startswith("cmpl-")
    assert all(chunk["object"] == "text_completion" and chunk["model"] == "tiny" for chunk in chunks)
    assert all("usage" not in chunk for chunk in chunks)
    *progress, last = call(PATH, {**BODY, "stream_options": {"include_usage": True}}).chunks
    assert all(chunk["usage"] is None for chunk in progress) and last["usage"] is not None


def test_text_stays_as_it_is(call, client):
    client.text = 'ä"\n\n€ data: '
    reply = call(PATH, {**BODY, "max_tokens": 50})
    assert "".join(chunk["choices"][0]["text"] for chunk in reply.chunks) == client.text + "0"
    assert "ä".encode() in reply.body


def test_usage(call, client):
    client.num_cached_tokens = 1
    last = call(PATH, {**BODY, "prompt": ["x", "yz"], "stream_options": {"include_usage": True}}).chunks[-1]
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 6,
        "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    no_usage = call(PATH, {**BODY, "stream_options": {"include_usage": None}}).chunks[-1]
    assert no_usage["choices"] and "usage" not in no_usage
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = call(PATH, {**BODY, "stream_options": options}).chunks
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3, 3]


def test_several_prompts_interleave(call):
    chunks = call(PATH, {**BODY, "prompt": ["x", "y"], "n": 2}).chunks
    texts, indices = ["", "", "", ""], []
    for chunk in chunks:
        choice = chunk["choices"][0]
        indices.append(choice["index"])
        texts[choice["index"]] += choice["text"]
    assert texts == ["Hi0", "Hi1", "Hi0", "Hi1"]
    assert indices[:4] == [0, 1, 2, 3]
    assert sum(chunk["choices"][0]["finish_reason"] == "stop" for chunk in chunks) == 4


@pytest.mark.parametrize("prompts", ["x", ["x", "y"]])
@pytest.mark.parametrize(
    ("failure", "status", "message"),
    [(RuntimeError("secret"), 500, "Internal server error."), (EngineUnavailableError("died"), 503, "died")],
)
def test_failure_in_the_middle(call, client, prompts, failure, status, message):
    client.fail_after, client.failure = 1, failure
    *progress, error = call(PATH, {**BODY, "prompt": prompts}).chunks
    assert all(chunk["choices"][0]["text"] == "H" for chunk in progress)
    assert error["error"]["code"] == status and error["error"]["message"].startswith(message)
    assert all(stream.num_aborts for stream in client.streams)


def test_an_engine_side_abort_ends_the_stream(client, service):
    client.hang_after = 1

    async def scenario():
        response = await open_stream(service)
        first = await response.stream.__anext__()
        client.streams[0].abort()
        return first, [piece async for piece in response.stream]

    _, rest = asyncio.run(scenario())
    assert json.loads(rest[0][len(b"data: ") :])["choices"][0]["finish_reason"] == "abort"
    assert rest[-1] == b"data: [DONE]\n\n"


def test_requests_run_before_the_stream_is_read(client, service):
    async def scenario():
        response = await open_stream(service)
        assert response.status == 200 and len(client.submissions) == 1
        await response.stream.aclose()

    asyncio.run(scenario())
    assert client.streams[0].num_aborts == 1


@pytest.mark.parametrize("prompts", ["x", ["x", "y"]])
@pytest.mark.parametrize("num_read", [0, 1])
def test_closing_aborts_once(client, service, prompts, num_read):
    client.hang_after = 2

    async def scenario():
        response = await open_stream(service, {**BODY, "prompt": prompts})
        for _ in range(num_read):
            await response.stream.__anext__()
        await response.stream.aclose()
        await response.stream.aclose()
        assert [piece async for piece in response.stream] == []

    asyncio.run(scenario())
    assert [stream.num_aborts for stream in client.streams] == [1] * len(client.streams)


@pytest.mark.parametrize("prompts", ["x", ["x", "y"]])
def test_closing_while_another_task_reads(client, service, prompts):
    client.hang_after = 1

    async def scenario():
        response = await open_stream(service, {**BODY, "prompt": prompts})

        async def read():
            return [piece async for piece in response.stream]

        reader = asyncio.create_task(read())
        await asyncio.sleep(0.01)
        await response.stream.aclose()
        pieces = await asyncio.wait_for(reader, 5)
        assert b'"finish_reason":"abort"' in b"".join(pieces)

    asyncio.run(scenario())
    assert all(stream.num_aborts for stream in client.streams)


@pytest.mark.parametrize("prompts", ["x", ["x", "y"]])
def test_cancelling_the_reader_aborts(client, service, prompts):
    client.hang_after = 1

    async def scenario():
        response = await open_stream(service, {**BODY, "prompt": prompts})

        async def read():
            async for _ in response.stream:
                pass

        reader = asyncio.create_task(read())
        await asyncio.sleep(0.01)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert all(stream.num_aborts for stream in client.streams)

    asyncio.run(scenario())


def test_a_forgotten_stream_aborts(client, service):
    async def scenario():
        response = await open_stream(service)
        del response
        gc.collect()
        assert client.streams[0].num_aborts == 1

    asyncio.run(scenario())


def test_a_stream_that_ended_aborts_nothing(call, client, service):
    assert call(PATH, BODY).status == 200
    gc.collect()
    assert client.streams[0].num_aborts == 0
