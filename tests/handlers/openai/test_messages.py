"""/v1/messages: Anthropic's form; the anthropic package's own types are the judge."""

from __future__ import annotations

import json

import anthropic.types
import numpy as np
import pytest
from anthropic.lib.streaming._messages import accumulate_event
from pydantic import TypeAdapter

from paged_backend.config import EngineConfig
from paged_backend.errors import EngineUnavailableError, QueueFullError
from paged_backend.handlers.openai.served_models import ServedModels
from paged_backend.handlers.openai.service import OpenAIService
from tests.handlers.openai.conftest import gate_of

from .events import events_of

PATH, COUNT = "/v1/messages", "/v1/messages/count_tokens"
EVENT = TypeAdapter(anthropic.types.RawMessageStreamEvent)
HELLO = [{"role": "user", "content": "yo"}]
BODY = {"messages": HELLO, "max_tokens": 400}
WEATHER = {"name": "weather", "description": "Says it.", "input_schema": {"type": "object", "properties": {}}}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Bonn"}}</tool_call>'
THINKING = {"type": "adaptive"}


@pytest.fixture(autouse=True)
def model(client):
    """A model that reasons and calls tools, and has room for both."""
    client.tokenizer.chat_template = "<think> </think> <tool_call> developer"
    client.max_model_len = 1000


def whole(call, **fields):
    message = call(PATH, {**BODY, **fields}).json
    anthropic.types.Message.model_validate(message)
    return message


def streamed(call, **fields):
    """What Anthropic's own client makes of a stream's events, and the events."""
    events = events_of(call(PATH, {**BODY, **fields, "stream": True}))
    snapshot, json_bufs = None, {}
    for event in events:
        if event["type"] != "ping":
            snapshot = accumulate_event(
                event=EVENT.validate_python(event), current_snapshot=snapshot, json_bufs=json_bufs
            )
    return json.loads(snapshot.model_dump_json()), events


def blocks(message):
    """The blocks with what tells them apart."""
    fields = ("type", "text", "thinking", "name", "input")
    return [{name: block[name] for name in fields if block.get(name) is not None} for block in message["content"]]


def test_text(call, client):
    client.num_cached_tokens = 4
    message = whole(call, system="Be kind.", request_id="mine", temperature=0.5, top_k=3)
    assert client.tokenizer.messages == [{"role": "system", "content": "Be kind."}, *HELLO]
    (submission,) = client.submissions
    assert submission["request_id"] == message["id"] == "msg_mine"
    assert (submission["params"].temperature, submission["params"].top_k, submission["params"].max_tokens) == (
        0.5,
        3,
        400,
    )
    assert blocks(message) == [{"type": "text", "text": "Hi0"}]
    assert (message["stop_reason"], message["stop_sequence"], message["model"]) == ("end_turn", None, "tiny")
    usage = message["usage"]
    assert (usage["cache_read_input_tokens"], usage["output_tokens"]) == (4, 3)
    assert usage["input_tokens"] + 4 == len(submission["prompt"])
    made, events = streamed(call, system="Be kind.")
    assert blocks(made) == blocks(message) and made["stop_reason"] == "end_turn"
    assert {name: made["usage"][name] for name in usage} == usage
    assert [event["type"] for event in events] == [
        "message_start",
        "ping",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def test_thinking_text_and_tool_use(call, client):
    client.text = f"<think>hm</think>So.{CALL}{CALL}"
    use = {"type": "tool_use", "name": "weather", "input": {"city": "Bonn"}}
    message = whole(call, tools=[WEATHER], thinking=THINKING)
    assert blocks(message) == [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "So.0"}, use, use]
    assert message["stop_reason"] == "tool_use"
    made, _ = streamed(call, tools=[WEATHER], thinking=THINKING)
    # The scripted engine says its index after the last call: a stream tells it there.
    texts = [{"type": "text", "text": "So."}, use, use, {"type": "text", "text": "0"}]
    assert blocks(made) == [{"type": "thinking", "thinking": "hm"}, *texts]
    assert made["stop_reason"] == "tool_use"


def test_a_tool_that_was_named_is_the_reason_to_stop_too(call, client):
    client.text, client.numbers_samples = '{"city": "Bonn"}', False
    fields = {"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "weather"}}
    message = whole(call, **fields)
    assert blocks(message) == [{"type": "tool_use", "name": "weather", "input": {"city": "Bonn"}}]
    assert message["stop_reason"] == streamed(call, **fields)[0]["stop_reason"] == "tool_use"
    assert whole(call, **fields, max_tokens=3)["stop_reason"] == "max_tokens"


def one_token_markers(client):
    """A model whose markers of reasoning are one token each."""
    encode, names = client.tokenizer.encode, {"<think>": "T", "</think>": "E"}
    client.tokenizer.encode = lambda text, special=True: encode(names.get(text, text), special)


def test_thinking_has_a_budget(call, client):
    one_token_markers(client)
    client.text = "<think>hm</think>So."
    whole(call, thinking={"type": "enabled", "budget_tokens": 2})
    (processor,) = client.submissions[-1]["params"].logits_processors
    begin, end = ord("T"), ord("E")
    logits = np.zeros(client.tokenizer.vocab_size)
    assert not processor([], [begin, 5], logits.copy()).any(), "one token of two"
    assert processor([], [begin, 5, 6], logits.copy()).argmax() == end
    assert np.isneginf(processor([], [begin, 5, 6], logits.copy())).sum() == len(logits) - 1
    whole(call, thinking={"type": "enabled"})
    assert not client.submissions[-1]["params"].logits_processors


def test_thinking_may_be_left_out_of_the_answer(call, client):
    client.text = "<think>hm</think>So."
    for display, kinds in (("omitted", ["text"]), ("summarized", ["thinking", "text"])):
        thinking = {"type": "adaptive", "display": display}
        for message in (whole(call, thinking=thinking), streamed(call, thinking=thinking)[0]):
            assert [block["type"] for block in message["content"]] == kinds
        assert "enable_thinking" not in client.tokenizer.template_arguments


@pytest.mark.parametrize("thinking", [None, {"type": "disabled"}])
def test_thinking_that_was_not_asked_for_is_left_out(call, client, thinking):
    client.text = "<think>hm</think>So."
    message = whole(call, thinking=thinking)
    assert blocks(message) == [{"type": "text", "text": "So.0"}]
    assert client.tokenizer.template_arguments["enable_thinking"] is False
    assert blocks(streamed(call, thinking=thinking)[0]) == blocks(message)


def test_the_reply_goes_back(call, client):
    client.text = f"<think>hm</think>So.{CALL}"
    content = whole(call, tools=[WEATHER], thinking=THINKING)["content"]
    use_id = content[2]["id"]
    result = {"type": "tool_result", "tool_use_id": use_id, "content": [{"type": "text", "text": "sunny"}]}
    thanks = {"type": "text", "text": "thanks", "cache_control": {"type": "ephemeral"}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": content},
        {"role": "user", "content": [result, thanks]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use_id, "is_error": True}]},
        {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]},
    ]
    whole(call, messages=messages, tools=[WEATHER])
    user, assistant, tool, more, again, silent = client.tokenizer.messages
    assert user == HELLO[0] and more == {"role": "user", "content": "thanks"}
    assert (assistant["reasoning"], assistant["content"]) == ("hm", "So.0")
    assert assistant["tool_calls"][0]["id"] == use_id
    assert assistant["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Bonn"}}
    assert tool == {"role": "tool", "tool_call_id": use_id, "content": "sunny"}
    assert again == {"role": "tool", "tool_call_id": use_id, "content": "Error"}
    assert silent == {"role": "assistant", "content": ""}


def test_output_that_is_cut_short(call, client):
    client.text = "Hello there"
    message = whole(call, max_tokens=5)
    assert (message["stop_reason"], blocks(message)) == ("max_tokens", [{"type": "text", "text": "Hello"}])
    client.text = f"So.{CALL}"
    message = whole(call, tools=[WEATHER], max_tokens=len(client.text) - 15)
    assert blocks(message) == [{"type": "text", "text": client.text[:-15]}], "half a call is none"
    client.text = "<think>"
    for message in (whole(call, max_tokens=7), streamed(call, max_tokens=7)[0]):
        assert blocks(message) == [{"type": "text", "text": ""}]


def test_what_is_asked_of_the_chat(call, client):
    whole(
        call,
        system=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        stop_sequences=["x", "y"],
        tools=[{**WEATHER, "type": "custom", "cache_control": None}],
        tool_choice={"type": "none", "disable_parallel_tool_use": True},
        metadata={"user_id": "me"},
        service_tier="auto",
        cache_salt="salt",
    )
    (submission,) = client.submissions
    assert tuple(submission["params"].stop) == ("x", "y") and submission["cache_salt"] == "salt"
    assert client.tokenizer.messages[0] == {"role": "system", "content": "a\nb"}
    function = client.tokenizer.template_arguments["tools"][0]["function"]
    assert function == {"name": "weather", "description": "Says it.", "parameters": WEATHER["input_schema"]}


def test_count_tokens(call, client):
    body = {"messages": HELLO, "system": "Be kind.", "tools": [WEATHER]}
    num_tokens = call(COUNT, body).json["input_tokens"]
    usage = whole(call, **body)["usage"]
    assert num_tokens == usage["input_tokens"] + usage["cache_read_input_tokens"]
    assert call(COUNT, {"messages": [{"role": "user", "content": "x" * 5000}]}).json["input_tokens"] > 5000
    assert len(client.submissions) == 1


def test_count_tokens_shows_the_tools_that_the_message_would(call, client):
    client.config = EngineConfig.from_args({"exclude_tools_when_tool_choice_none": True})
    body = {"messages": HELLO, "tools": [WEATHER], "tool_choice": {"type": "none"}}
    for path in (PATH, COUNT):
        assert call(path, {**body, "max_tokens": 1}).status == 200
        assert client.tokenizer.template_arguments["tools"] is None


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5000}, "maximum context length"),
        ({"messages": []}, "messages must not be empty"),
        ({"messages": ["x"]}, "messages.0 must be an object"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "messages.0.content.0.type"),
        (
            {
                "messages": [
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": 1}]}
                ]
            },
            "messages.0.content.0.input",
        ),
        ({"system": 3}, "system"),
        ({"system": False}, "system"),
        ({"tools": False}, "tools"),
        ({"temperature": -1}, "temperature"),
        ({"stop_sequences": list("abcdefghi")}, "stop_sequences"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools.0.type"),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema"),
        ({"tools": [{**WEATHER, "name": "no space"}]}, "tools.0.name"),
        ({"tools": [{**WEATHER, "defer_loading": True}]}, "tools.0.defer_loading"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "any", "name": "weather"}}, "tool_choice.name"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"max_completion_tokens": 3}, "max_completion_tokens"),
        ({"thinking": {"type": "perhaps"}}, "thinking.type"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.budget_tokens needs a model that marks"),
        ({"thinking": {"type": "enabled", "budget_tokens": -2}}, "thinking.budget_tokens must be at least 0"),
        ({"thinking": {"type": "adaptive", "budget_tokens": 1024}}, 'is for type "enabled"'),
        ({"thinking": {"type": "enabled", "display": "updates"}}, "thinking.display"),
        ({"thinking": {"type": "enabled", "effort": "high"}}, "thinking.effort"),
    ],
)
def test_refusals(call, client, fields, says):
    reply = call(PATH, {**BODY, **fields})
    assert reply.status == 400, reply.json
    assert reply.json["type"] == "error" and reply.json["error"]["type"] == "invalid_request_error"
    assert says in reply.json["error"]["message"]
    assert not client.submissions


def test_errors_have_anthropics_form(call, client):
    locked = OpenAIService(ServedModels.one(client, ("tiny",)), gate=gate_of("k"), max_body_bytes=200)
    cases = [
        ({"body": BODY}, 401, "authentication_error"),
        ({"body": {**BODY, "model": "claude"}, "headers": {"x-api-key": "k"}}, 404, "not_found_error"),
        ({"body": b"{" + b" " * 200, "headers": {"x-api-key": "k"}}, 413, "request_too_large"),
        ({"body": b"{", "headers": {"x-api-key": "k"}}, 400, "invalid_request_error"),
        ({"body": BODY, "method": "GET"}, 401, "authentication_error"),
    ]
    for fields, status, kind in cases:
        reply = call(PATH, service=locked, **fields)
        assert (reply.status, reply.json["error"]["type"]) == (status, kind)
    client.submit_errors = {0: QueueFullError("full", retry_after_s=2, reason="x")}
    reply = call(PATH, BODY)
    assert (reply.status, reply.json["error"]["type"]) == (429, "rate_limit_error")
    assert reply.headers["Retry-After"] == "2"
    client.submit_errors = {0: EngineUnavailableError("draining")}
    assert call(PATH, BODY).json["error"] == {"type": "overloaded_error", "message": "draining"}


def test_either_header_carries_the_key(call, client):
    locked = OpenAIService(ServedModels.one(client, ("tiny",)), gate=gate_of("first", "second"))
    for headers in ({"x-api-key": "second"}, {"authorization": "Bearer second"}):
        for path, body in ((PATH, BODY), ("/v1/completions", {"prompt": "x"})):
            assert call(path, body, service=locked, headers=headers).status == 200
    assert len({submission["tenant"] for submission in client.submissions}) == 1
    assert call(PATH, BODY, service=locked, headers={"x-api-key": "third"}).status == 401


def test_a_fault_on_the_way(call, client):
    client.fail_after = 2
    assert call(PATH, BODY).json["error"]["type"] == "api_error"
    events = events_of(call(PATH, {**BODY, "stream": True}))
    assert events[-1]["type"] == "error" and events[-1]["error"]["type"] == "api_error"
    assert "secret" not in str(events)
