"""/v1/chat/completions: what a body means, and what it answers."""

from __future__ import annotations

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from paged_backend.config import EngineConfig
from paged_backend.errors import InvalidRequestError

PATH = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "yo"}]
WITH_TEMPLATE = {"messages": HELLO, "chat_template": "{{ x }}"}


def rendered(client, index=-1):
    """The text of a submitted prompt."""
    return client.tokenizer.decode(client.submissions[index]["prompt"], skip_special_tokens=False)


def test_whole_response(call, client):
    body = call(PATH, {"messages": HELLO, "n": 2}).json
    ChatCompletion.model_validate(body)
    assert body["id"].startswith("chatcmpl-") and body["object"] == "chat.completion" and body["model"] == "tiny"
    assert [choice["message"]["content"] for choice in body["choices"]] == ["Hi0", "Hi1"]
    assert body["choices"][0]["message"]["role"] == "assistant"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert rendered(client) == "[user]yo[assistant]"
    assert body["usage"]["prompt_tokens"] == len("[user]yo[assistant]")
    assert body["usage"]["completion_tokens"] == 6


def test_roles_and_parts(call, client):
    messages = [
        {"role": "developer", "content": "be brief"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            "name": "u",
        },
        # A reply's message may come back as it was given.
        {"role": "assistant", "content": "c", "refusal": None, "tool_calls": [], "audio": None},
        {"role": "tool", "content": "d", "tool_call_id": "t"},
    ]
    assert call(PATH, {"messages": messages}).status == 200
    assert rendered(client) == "[system]be brief[user]a\nb[assistant]c[tool]d[assistant]"


@pytest.mark.parametrize(
    ("fields", "max_tokens"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 6),
    ],
)
def test_max_tokens(call, client, fields, max_tokens):
    assert call(PATH, {"messages": HELLO, **fields}).status == 200
    assert client.submissions[0]["params"].max_tokens == max_tokens


def test_without_a_bound_the_rest_of_the_context_is_the_bound(call, client):
    client.text = "x" * 200
    prompt = "[user]yo[assistant]"
    assert call(PATH, {"messages": HELLO}).status == 200
    assert client.submissions[0]["params"].max_tokens == 100 - len(prompt)


def test_template_options(call, client):
    options = {"add_generation_prompt": False, "continue_final_message": True}
    assert call(PATH, {"messages": HELLO, **options, "chat_template_kwargs": {"mood": 3}}).status == 200
    nothing = {"chat_template": None, "tools": None, "documents": None}
    assert client.tokenizer.template_arguments == {**options, **nothing, "mood": 3}
    assert call(PATH, {"messages": HELLO, "add_special_tokens": True}).status == 200
    assert rendered(client) == "<s>[user]yo[assistant]"


def test_logprobs(call):
    body = {"messages": HELLO, "logprobs": True, "top_logprobs": 1, "max_tokens": 1}
    item = {"token": "H", "logprob": -1.5, "bytes": [72]}
    top = [{"token": "b", "logprob": -0.5, "bytes": [98]}]
    expected = {"content": [{**item, "top_logprobs": top}]}
    reply = call(PATH, body).json
    ChatCompletion.model_validate(reply)
    assert reply["choices"][0]["logprobs"] == expected
    assert call(PATH, {**body, "stream": True}).chunks[1]["choices"][0]["logprobs"] == expected
    without_top = call(PATH, {**body, "top_logprobs": None}).json["choices"][0]["logprobs"]
    assert without_top["content"][0]["top_logprobs"] == []


def test_stream(call):
    body = {"messages": HELLO, "n": 2, "stream": True, "stream_options": {"include_usage": True}}
    chunks = call(PATH, body).chunks
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
        assert chunk["object"] == "chat.completion.chunk"
    assert len({chunk["id"] for chunk in chunks}) == 1 and chunks[0]["id"].startswith("chatcmpl-")
    *progress, usage = chunks
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 6
    assert all(chunk["usage"] is None for chunk in progress)
    for index in (0, 1):
        mine = [chunk["choices"][0] for chunk in progress if chunk["choices"][0]["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert [choice["delta"]["content"] for choice in mine[1:]] == ["H", "i", str(index)]
        assert [choice["finish_reason"] for choice in mine] == [None, None, None, "stop"]
        assert mine[-1]["stop_reason"] is None


def test_token_ids(call):
    body = {"messages": HELLO, "return_token_ids": True}
    reply = call(PATH, body).json
    prompt = [ord(character) for character in "[user]yo[assistant]"]
    assert reply["prompt_token_ids"] == prompt and reply["choices"][0]["token_ids"] == [72, 105, 48]
    chunks = call(PATH, {**body, "stream": True}).chunks
    assert chunks[0]["prompt_token_ids"] == prompt and all("prompt_token_ids" not in chunk for chunk in chunks[1:])
    assert [chunk["choices"][0]["token_ids"] for chunk in chunks[1:]] == [[72], [105], [48]]


def test_defaults_spelled_out_are_fine(call):
    body = {
        "tools": None,
        "tool_choice": "none",
        "parallel_tool_calls": True,
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "echo": False,
        "documents": None,
        "include_reasoning": True,
        "logprobs": False,
        "top_logprobs": 0,
        "service_tier": "auto",
    }
    assert call(PATH, {"messages": HELLO, **body}).status == 200


@pytest.mark.parametrize(("role", "generates", "echoed"), [("assistant", False, True), ("user", True, False)])
def test_echo(call, role, generates, echoed):
    messages = [*HELLO, {"role": role, "content": "So: "}]
    body = {"messages": messages, "echo": True, "add_generation_prompt": generates}
    said = call(PATH, body).json["choices"][0]["message"]
    assert (said["role"], said["content"]) == ("assistant", "So: Hi0" if echoed else "Hi0")
    first = call(PATH, {**body, "stream": True}).chunks[0]["choices"][0]["delta"]
    assert first == {"role": "assistant", "content": "So: " if echoed else ""}


def test_the_answer_may_be_anothers(call):
    said = call(PATH, {"messages": HELLO, "add_generation_prompt": False}).json["choices"][0]["message"]
    assert said["role"] == "user"


class TestTemplates:
    """A request's own template, and what reaches it."""

    def test_is_refused_unless_trusted(self, call, client):
        reply = call(PATH, WITH_TEMPLATE)
        assert reply.status == 400 and reply.error["param"] == "chat_template"
        assert "trust_request_chat_template" in reply.error["message"]
        client.config = EngineConfig.from_args(trust_request_chat_template=True)
        assert call(PATH, WITH_TEMPLATE).status == 200
        assert client.tokenizer.template_arguments["chat_template"] == "{{ x }}"

    def test_needs_no_template_of_the_model(self, call, client):
        client.tokenizer.chat_template = None
        client.config = EngineConfig.from_args(trust_request_chat_template=True)
        assert call(PATH, WITH_TEMPLATE).status == 200

    def test_documents(self, call, client):
        documents = [{"title": "a", "text": "b"}]
        assert call(PATH, {"messages": HELLO, "documents": documents}).status == 200
        assert client.tokenizer.template_arguments["documents"] == documents
        assert call(PATH, {"messages": HELLO, "documents": [{"a": 1}]}).error["param"] == "body.documents.0.a"

    def test_defaults_of_the_server(self, call, client):
        client.config = EngineConfig.from_args(default_chat_template_kwargs={"mood": 1, "tone": 2})
        assert call(PATH, {"messages": HELLO, "chat_template_kwargs": {"mood": 3}}).status == 200
        arguments = client.tokenizer.template_arguments
        assert (arguments["mood"], arguments["tone"]) == (3, 2)

    def test_half_characters_are_refused_wherever_they_come_from(self, call, client):
        client.tokenizer.apply_chat_template = lambda *_, **arguments: arguments["mood"]
        reply = call(PATH, {"messages": HELLO, "chat_template_kwargs": {"mood": "\ud800"}})
        assert reply.status == 400 and reply.error["param"] == "messages"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": None}, "body.messages"),
        ({"messages": "hi"}, "body.messages"),
        ({"messages": ["hi"]}, "body.messages.0"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages.0.role"),
        ({"messages": [*HELLO, {"role": "user"}]}, "body.messages.1.content"),
        ({"messages": [{"role": "user", "content": 3}]}, "body.messages.0.content"),
        ({"messages": [{"role": "user", "content": []}]}, "body.messages.0.content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "body.messages.0.content.0"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content.0.type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
            "body.messages.0.content.0.text",
        ),
        ({"messages": [{"role": "user", "content": "x", "name": 1}]}, "body.messages.0.name"),
        ({"messages": [{"role": "user", "content": "x", "nam": "y"}]}, "messages.0.nam"),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
            "body.messages.0.tool_calls.0.function",
        ),
        ({"messages": [{"role": "user", "content": "x" * 100}]}, "messages"),
        ({"max_tokens": 90}, "max_tokens"),
        ({"max_completion_tokens": 90}, "max_completion_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 1}, "body.logprobs"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"self": 1}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"sanitize_control_tokens": True}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": []}, "body.chat_template_kwargs"),
        ({"chat_template": "{{ x }}"}, "chat_template"),
        ({"tools": [{"type": "function"}]}, "body.tools.0.function"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs"),
        ({"echo": 0}, "body.echo"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"reasoning_effort": "hihg"}, "reasoning_effort"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"stream_options": {}}, "stream_options"),
        ({"prompt": "x"}, "prompt"),
    ],
)
def test_refusals(call, client, fields, param):
    reply = call(PATH, {"messages": HELLO, **fields})
    assert reply.status == 400
    assert reply.error["type"] == "BadRequestError" and reply.error["param"] == param
    assert client.submissions == []


def test_no_chat_template(call, client):
    client.tokenizer.chat_template = None
    error = call(PATH, {"messages": HELLO}).error
    assert error["param"] == "messages" and "/v1/completions" in error["message"]


def test_the_engines_prompt_is_the_clients_messages(call, client):
    client.submit_errors = {0: InvalidRequestError("too long for the cache", param="prompt")}
    assert call(PATH, {"messages": HELLO}).error["param"] == "messages"
