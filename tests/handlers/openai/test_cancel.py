"""/v1/cancel: by the response's id or the request's, one's own alone, any number of times."""

from __future__ import annotations

import asyncio
import gc

import pytest

from paged_backend.handlers.openai.served_models import ServedModels
from paged_backend.handlers.openai.service import HttpRequest, OpenAIService

from .conftest import gate_of, read

COMPLETIONS, CHAT, CANCEL = "/v1/completions", "/v1/chat/completions", "/v1/cancel"
CHAT_BODY = {"messages": [{"role": "user", "content": "x"}]}


async def post(service, path, body, key=None):
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return await read(await service.handle(HttpRequest(path, body=body, headers=headers)))


def cancel_meanwhile(service, client, path, body, *cancellations, key=None):
    """Sends the request, then each of (body, key) to /v1/cancel while it hangs; returns its reply and theirs."""
    client.hang_after = 1

    async def scenario():
        task = asyncio.create_task(post(service, path, body, key))
        num_before = len(client.streams)
        while len(client.streams) == num_before:
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        answers = []
        for cancellation, asked_by in cancellations:
            answers.append(await post(service, CANCEL, cancellation, asked_by))
            await asyncio.sleep(0.01)
        if not task.done():
            for stream in client.streams:
                stream.abort()
        return await task, answers

    reply, answers = asyncio.run(scenario())
    assert [answer.status for answer in answers] == [200] * len(answers)
    return reply, [answer.json for answer in answers]


@pytest.mark.parametrize(
    ("path", "body", "prefix"), [(CHAT, CHAT_BODY, "chatcmpl"), (COMPLETIONS, {"prompt": "x"}, "cmpl")]
)
@pytest.mark.parametrize("by", ["id", "request_id"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_response_ends_with_abort(service, client, path, body, prefix, by, stream):
    asked = {"id": f"{prefix}-mine"} if by == "id" else {"request_id": "mine"}
    body = {**body, "request_id": "mine", "stream": stream}
    reply, answers = cancel_meanwhile(service, client, path, body, (asked, None), (asked, None))
    assert answers[0] == {"object": "cancellation", "cancelled": True, "ids": [f"{prefix}-mine"]}
    assert answers[1] == {"object": "cancellation", "cancelled": False, "ids": []}, "it was over already"
    last = reply.chunks[-1] if stream else reply.json
    assert last["choices"][0]["finish_reason"] == "abort"


@pytest.mark.parametrize("by", ["id", "request_id"])
def test_responses_and_messages_end_in_their_own_words(service, client, by):
    asked = {"id": "resp_mine"} if by == "id" else {"request_id": "mine"}
    body = {"input": "x", "request_id": "mine"}
    reply, answers = cancel_meanwhile(service, client, "/v1/responses", body, (asked, None))
    assert answers[0]["ids"] == ["resp_mine"] and reply.json["status"] == "cancelled"
    asked = {"id": "msg_mine"} if by == "id" else {"request_id": "mine"}
    body = {**CHAT_BODY, "max_tokens": 9, "request_id": "mine"}
    reply, answers = cancel_meanwhile(service, client, "/v1/messages", body, (asked, None))
    assert answers[0]["ids"] == ["msg_mine"] and reply.json["stop_reason"] == "pause_turn"


def test_all_prompts_of_a_response_end(service, client):
    body = {"prompt": ["x", "y", "z"], "request_id": "mine"}
    reply, answers = cancel_meanwhile(service, client, COMPLETIONS, body, ({"id": "cmpl-mine"}, None))
    assert answers[0]["ids"] == ["cmpl-mine"]
    assert [choice["finish_reason"] for choice in reply.json["choices"]] == ["abort"] * 3


def test_a_name_is_one_response_alone(service, client):
    # The second prompt of "cmpl-a" is the engine's request "cmpl-a-1": the name that this response has.
    _, answers = cancel_meanwhile(
        service, client, COMPLETIONS, {"prompt": "x", "request_id": "a-1"}, ({"id": "cmpl-a"}, None)
    )
    assert not answers[0]["cancelled"] and client.streams[0].num_aborts == 1, "the test's own abort"


def test_only_the_own_key_cancels(client):
    service = OpenAIService(ServedModels.one(client, ("tiny",)), gate=gate_of("first", "second"))
    mine = {"request_id": "mine"}
    body = {**CHAT_BODY, **mine}
    _, answers = cancel_meanwhile(service, client, CHAT, body, (mine, "second"), (mine, "first"), key="first")
    assert [answer["cancelled"] for answer in answers] == [False, True]


@pytest.mark.parametrize("name", ["unknown", "", "cmpl-", "\u00e9", "x" * 10_000])
def test_what_is_unknown_or_over_is_no_error(call, name):
    call(COMPLETIONS, {"prompt": "x", "request_id": "over"})
    assert call(CANCEL, {"request_id": name}).json == {"object": "cancellation", "cancelled": False, "ids": []}
    assert not call(CANCEL, {"request_id": "over"}).json["cancelled"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "id"),
        ({"id": None}, "id"),
        ({"id": "a", "request_id": "b"}, "id"),
        ({"id": 3}, "body.id"),
        ({"response_id": "a"}, "response_id"),
    ],
)
def test_refusals(call, body, param):
    reply = call(CANCEL, body)
    assert reply.status == 400 and reply.error["param"] == param


def test_responses_that_are_over_are_forgotten(call, service, client):
    for index in range(3):
        call(COMPLETIONS, {"prompt": ["x", "y"], "request_id": str(index), "stream": index == 1})
    client.streams.clear()
    gc.collect()
    assert not service._context.live._responses
