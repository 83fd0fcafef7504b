"""/v1/cancel: by the response's id or the request's, one's own alone, any number of times."""

from __future__ import annotations

import asyncio

import pytest

from paged_backend.handlers.openai.served_models import ServedModel, ServedModels
from paged_backend.handlers.openai.service import HttpRequest, OpenAIService

from .conftest import FakeClient, gate_of, read

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
    assert len(client.streams) == 6 and not len(service._context.live)


def test_an_id_is_free_again_when_all_of_its_requests_are_over(service, client):
    client.hang_after = 1

    async def scenario():
        body = {"prompt": ["x", "y"], "request_id": "mine", "stream": True}
        first = await service.handle(HttpRequest(COMPLETIONS, body=body))
        # The engine, whose requests are cmpl-mine-0 and cmpl-mine-1, would take it.
        single = {"prompt": "x", "request_id": "mine"}
        refused = await post(service, COMPLETIONS, single)
        assert refused.status == 400 and refused.error["param"] == "request_id"
        assert "already in use" in refused.error["message"] and len(client.streams) == 2
        assert (await post(service, CANCEL, {"id": "cmpl-mine"})).json["cancelled"], "the first is still known"
        await read(first)
        client.hang_after = None
        assert (await post(service, COMPLETIONS, single)).status == 200

    asyncio.run(scenario())


class TestSeveralModels:
    """The same id on two of them is two responses."""

    @pytest.fixture
    def clients(self):
        return FakeClient(hang_after=1), FakeClient(hang_after=1)

    @pytest.fixture
    def both(self, clients):
        return OpenAIService(ServedModels([ServedModel(clients[0], ("a", "alias")), ServedModel(clients[1], ("b",))]))

    def ended(self, both, clients, asked, *on):
        """The answer to /v1/cancel while responses of the same request_id run, and on which models they ended."""

        async def scenario():
            for model in on:
                body = {"model": model, "prompt": "x", "request_id": "mine"}
                tasks.append(asyncio.create_task(post(both, COMPLETIONS, body)))
            await asyncio.sleep(0.01)
            answer = await post(both, CANCEL, asked)
            await asyncio.sleep(0.01)
            ended = [model for model, task in zip(on, tasks, strict=True) if task.done()]
            for client in clients:
                for stream in client.streams:
                    stream.abort()
            assert {reply.status for reply in await asyncio.gather(*tasks)} <= {200}
            return answer, ended

        tasks = []
        return asyncio.run(scenario())

    @pytest.mark.parametrize("name", [{"id": "cmpl-mine"}, {"request_id": "mine"}])
    @pytest.mark.parametrize(("model", "ended"), [("alias", "a"), ("b", "b")])
    def test_the_one_that_is_named_ends(self, both, clients, name, model, ended):
        answer, found = self.ended(both, clients, {**name, "model": model}, "a", "b")
        assert answer.json["ids"] == ["cmpl-mine"] and found == [ended]

    @pytest.mark.parametrize("name", [{"id": "cmpl-mine"}, {"request_id": "mine"}])
    def test_without_a_name_nothing_ends_by_chance(self, both, clients, name):
        answer, found = self.ended(both, clients, name, "a", "b")
        assert answer.status == 400 and answer.error["param"] == "model" and "`a`, `b`" in answer.error["message"]
        assert not found

    @pytest.mark.parametrize("model", ["a", "b"])
    def test_where_one_has_it_no_name_is_needed(self, both, clients, model):
        answer, found = self.ended(both, clients, {"id": "cmpl-mine"}, model)
        assert answer.json["cancelled"] and found == [model]

    def test_a_model_that_has_none_of_it(self, both, clients):
        answer, found = self.ended(both, clients, {"id": "cmpl-mine", "model": "b"}, "a")
        assert not answer.json["cancelled"] and not found
        answer, _ = self.ended(both, clients, {"id": "cmpl-mine", "model": "c"})
        assert answer.status == 404 and answer.error["param"] == "model"
