"""/v1/responses: items in, items out, and events in OpenAI's order; the openai package's own types are the judge."""

from __future__ import annotations

import copy
import itertools

import openai.types.responses
import pytest
from pydantic import TypeAdapter

from paged_backend.errors import QueueFullError
from paged_backend.handlers.openai.protocol.chat import ChatRequest
from paged_backend.handlers.openai.protocol.conversation import ConversationRequest

from .events import events_of

PATH = "/v1/responses"
EVENT = TypeAdapter(openai.types.responses.ResponseStreamEvent)
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Bonn"}}</tool_call>'


@pytest.fixture(autouse=True)
def model(client):
    """A model that reasons and calls tools, and has room for both."""
    client.tokenizer.chat_template = "<think> </think> <tool_call> developer"
    client.max_model_len = 1000


def whole(call, body):
    response = call(PATH, body).json
    openai.types.responses.Response.model_validate(response)
    return response


def streamed(call, body):
    """The events of a stream; what they add up to must be what the last one holds."""
    events = events_of(call(PATH, {**body, "stream": True}))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    output = []
    for event in events:
        EVENT.validate_python(event)
        match event["type"]:
            case "response.output_item.added":
                assert event["output_index"] == len(output) and event["item"]["status"] == "in_progress"
                output.append(copy.deepcopy(event["item"]))
            case "response.content_part.added":
                output[-1]["content"].append(copy.deepcopy(event["part"]))
            case "response.output_text.delta" | "response.reasoning_text.delta":
                part = output[event["output_index"]]["content"][event["content_index"]]
                part["text"] += event["delta"]
                part.setdefault("logprobs", []).extend(event.get("logprobs", []))
            case "response.function_call_arguments.delta":
                output[event["output_index"]]["arguments"] += event["delta"]
            case "response.output_text.done" | "response.reasoning_text.done":
                assert event["text"] == output[-1]["content"][0]["text"]
            case "response.function_call_arguments.done":
                assert event["arguments"] == output[-1]["arguments"]
            case "response.output_item.done":
                done, made = event["item"], output[event["output_index"]]
                if done["type"] == "reasoning":
                    del made["content"][0]["logprobs"]
                assert {**made, "status": done["status"]} == done
                output[-1] = done
            case _:
                pass
        if "item_id" in event:
            assert event["item_id"] == output[event["output_index"]]["id"]
    assert events[-1]["response"]["output"] == output
    return events


def kinds(events):
    """The types of the events, each run of the same one once."""
    return [kind.removeprefix("response.") for kind, _ in itertools.groupby(event["type"] for event in events)]


def without_names(response):
    """A response without what differs between two of the same request."""
    response = copy.deepcopy(response)
    for item in response["output"]:
        item.pop("id"), item.pop("call_id", None)
    return {name: value for name, value in response.items() if name not in ("id", "created_at", "completed_at")}


def test_text(call, client):
    client.num_cached_tokens = 4
    body = {"input": "yo", "instructions": "Be kind.", "metadata": {"a": "b"}, "temperature": 0.5, "user": "me"}
    response = whole(call, {**body, "request_id": "mine"})
    assert client.tokenizer.messages == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "yo"},
    ]
    assert client.submissions[0]["request_id"] == response["id"] == "resp_mine"
    (message,) = response["output"]
    assert message["content"] == [{"type": "output_text", "text": "Hi0", "annotations": [], "logprobs": []}]
    assert (response["status"], response["store"], response["temperature"]) == ("completed", False, 0.5)
    assert (response["metadata"], response["instructions"], response["user"]) == ({"a": "b"}, "Be kind.", "me")
    usage = response["usage"]
    assert usage["input_tokens_details"]["cached_tokens"] == 4 and usage["output_tokens"] == 3
    assert usage["total_tokens"] == usage["input_tokens"] + 3
    events = streamed(call, body)
    assert kinds(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert without_names(events[-1]["response"]) == without_names(response)


def test_reasoning_text_and_calls(call, client):
    client.text = f"<think>hm</think>So.{CALL}{CALL}"
    body = {"input": "yo", "tools": [WEATHER]}
    response = whole(call, body)
    assert [item["type"] for item in response["output"]] == ["reasoning", "message", "function_call", "function_call"]
    assert response["output"][0]["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert response["output"][2]["arguments"] == '{"city": "Bonn"}' and response["output"][2]["call_id"]
    assert response["tools"] == [WEATHER] and response["status"] == "completed"
    assert len({item["id"] for item in response["output"]}) == 4
    # The scripted engine says its index after the last call: a stream tells it there, as an item of its own.
    events = streamed(call, body)
    assert kinds(events) == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done"),
        *("content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta", "output_text.done"),
        *("content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta", "output_text.done"),
        *("content_part.done", "output_item.done", "completed"),
    ]


def test_the_output_goes_back_as_input(call, client):
    client.text = f"<think>hm</think>So.{CALL}"
    output = whole(call, {"input": "yo", "tools": [WEATHER]})["output"]
    call_id = output[2]["call_id"]
    result = {"type": "function_call_output", "call_id": call_id, "output": "sunny"}
    whole(call, {"input": [{"role": "user", "content": "yo"}, *output, result], "tools": [WEATHER]})
    user, assistant, tool = client.tokenizer.messages
    assert user == {"role": "user", "content": "yo"}
    assert (assistant["reasoning"], assistant["content"]) == ("hm", "So.0")
    (made,) = assistant["tool_calls"]
    assert made["id"] == call_id and made["function"] == {"name": "weather", "arguments": {"city": "Bonn"}}
    assert tool == {"role": "tool", "tool_call_id": call_id, "content": "sunny"}


def test_turns_that_follow_each_other_stay_apart(call, client):
    function_call = {"type": "function_call", "call_id": "1", "name": "f", "arguments": ""}
    items = [
        {"role": "developer", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "thought"}]},
        function_call,
        {**function_call, "call_id": "2"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "said"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "out"}]},
    ]
    whole(call, {"input": items})
    seen = [(message["role"], message["content"]) for message in client.tokenizer.messages]
    assert [role for role, _ in seen] == ["developer", "assistant", "assistant", "assistant", "tool"]
    assert [text for _, text in seen] == ["a\nb", "", "said", "no", "out"]
    assert [made["id"] for made in client.tokenizer.messages[1]["tool_calls"]] == ["1", "2"]
    assert client.tokenizer.messages[1]["reasoning"] == "thought"


def test_output_that_is_cut_short(call, client):
    client.text = "Hello there"
    body = {"input": "yo", "max_output_tokens": 5}
    response = whole(call, body)
    assert response["status"] == "incomplete" and response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][0]["status"] == "incomplete"
    events = streamed(call, body)
    assert events[-1]["type"] == "response.incomplete" and events[-2]["item"]["status"] == "incomplete"
    assert without_names(events[-1]["response"]) == without_names(response)
    client.text = CALL
    body = {"input": "yo", "tools": [WEATHER], "max_output_tokens": len(CALL) - 15}
    response = whole(call, body)
    assert response["output"][0]["content"][0]["text"] == CALL[:-15], "half a call is none"
    item = streamed(call, body)[-1]["response"]["output"][0]
    assert (item["type"], item["name"], item["status"]) == ("function_call", "weather", "incomplete")


@pytest.mark.parametrize(
    ("text", "num_more", "statuses"),
    [
        (f"So.{CALL}{CALL}", -len(CALL), {"message": "completed", "function_call": "completed"}),
        (f"{CALL} And then", -2, {"message": "incomplete", "function_call": "completed"}),
        ("<think>hm hm</think>", -len("m</think>"), {"reasoning": "incomplete"}),
        ("<think>hm</think>So be it", -2, {"reasoning": "completed", "message": "incomplete"}),
    ],
    ids=["after a call", "in a text after a call", "in a thought", "in a text after a thought"],
)
def test_only_what_was_cut_is_incomplete(call, client, text, num_more, statuses):
    client.text = text
    body = {"input": "yo", "tools": [WEATHER], "max_output_tokens": len(text) + num_more}
    for response in (whole(call, body), streamed(call, body)[-1]["response"]):
        assert response["status"] == "incomplete"
        assert {item["type"]: item["status"] for item in response["output"]} == statuses


def test_a_forced_call_that_is_cut_is_incomplete(call, client):
    client.text, client.numbers_samples = '{"city": "Bonn"}', False
    body = {"input": "yo", "tools": [WEATHER], "tool_choice": {"type": "function", "name": "weather"}}
    for num_tokens, status in ((5, "incomplete"), (len(client.text), "completed")):
        asked = {**body, "max_output_tokens": num_tokens}
        for response in (whole(call, asked), streamed(call, asked)[-1]["response"]):
            (item,) = response["output"]
            assert (item["type"], item["status"]) == ("function_call", status)


def test_nothing_said_is_an_empty_message(call, client):
    client.text = "<think>"
    for response in (
        whole(call, {"input": "yo", "max_output_tokens": 7}),
        streamed(call, {"input": "yo", "max_output_tokens": 7})[-1]["response"],
    ):
        assert [item["type"] for item in response["output"]] == ["message"]
        assert response["output"][0]["content"][0]["text"] == ""


@pytest.mark.parametrize("asked", [{"top_logprobs": 2}, {"include": ["message.output_text.logprobs"]}])
def test_logprobs(call, asked):
    body = {"input": "yo", **asked}
    response = whole(call, body)
    logprobs = response["output"][0]["content"][0]["logprobs"]
    assert [entry["token"] for entry in logprobs] == ["H", "i", "0"]
    assert [len(entry["top_logprobs"]) for entry in logprobs] == [asked.get("top_logprobs", 0)] * 3
    assert without_names(streamed(call, body)[-1]["response"]) == without_names(response)


def test_what_is_asked_of_the_chat(call, client):
    whole(
        call,
        {
            "input": "yo",
            "tools": [{**WEATHER, "strict": None, "description": "Says it."}],
            "tool_choice": "none",
            "truncation": "auto",
            "reasoning": {"effort": "none", "summary": "auto"},
            "top_k": 3,
            "seed": 4,
            "priority": 0,
            "cache_salt": "salt",
            "store": True,
            "include": ["reasoning.encrypted_content"],
            "text": {"format": {"type": "text"}, "verbosity": "medium"},
        },
    )
    (submission,) = client.submissions
    assert (submission["params"].top_k, submission["params"].seed, submission["cache_salt"]) == (3, 4, "salt")
    arguments = client.tokenizer.template_arguments
    assert arguments["tools"][0]["function"]["description"] == "Says it."
    assert arguments["enable_thinking"] is False


def test_a_long_input_is_truncated_where_asked(call, client):
    response = call(PATH, {"input": "x" * 2000})
    assert response.status == 400 and response.error["param"] == "input" and "messages" not in response.error["message"]
    assert whole(call, {"input": "x" * 2000, "truncation": "auto"})["usage"]["input_tokens"] == 999


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "keeps no responses"),
        ({"input": []}, "input", "empty"),
        ({"input": 3}, "body.input", "string or a list"),
        ({"input": ["x"]}, "body.input.0", "an object"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input.0.role", "wizard"),
        ({"input": [{"role": "user"}]}, "body.input.0.content", "string"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0.type", "input_image"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type", "Send the item itself"),
        ({"input": [{"type": "web_search_call"}]}, "input.0.type", "web_search_call"),
        ({"input": [{}]}, "body.input.0.type", "message"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "body.input.0.call_id", "string"),
        ({"input": "\ud800"}, "input", "character"),
        (
            {
                "input": [
                    {"role": "user", "content": "x"},
                    {"type": "function_call", "call_id": "1", "name": "f", "arguments": "["},
                ]
            },
            "input.1.tool_calls.0.function.arguments",
            "JSON",
        ),
        ({"include": ["everything"]}, "include.0", "everything"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options", "stream"),
        ({"metadata": {"k" * 65: "v"}}, "metadata", "64"),
        ({"background": True}, "background", "not supported"),
        ({"max_tokens": 3}, "max_tokens", "max_output_tokens"),
        ({"max_output_tokens": 0}, "max_output_tokens", "max_output_tokens"),
        ({"max_output_tokens": 5000}, "max_output_tokens", "input"),
        ({"temperature": -1}, "temperature", "temperature"),
        ({"top_logprobs": 21}, "top_logprobs", "0..20"),
        ({"tools": 0}, "body.tools", "list"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "web_search"),
        ({"tools": [{"type": "function", "name": "no space"}]}, "tools.0.name", "letters"),
        ({"tools": [WEATHER], "tool_choice": {"type": "file_search"}}, "tool_choice", "function"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", "missing"),
        ({"text": {"format": {"type": "xml"}}}, "body.text.format.type", "text"),
        ({"truncation": "sometimes"}, "body.truncation", "auto"),
    ],
)
def test_refusals(call, client, fields, param, says):
    reply = call(PATH, {"input": "yo", **fields})
    assert reply.status == 400 and reply.error["param"] == param, reply.json
    assert says in reply.error["message"]
    assert not client.submissions


def test_an_unknown_model_and_a_full_queue(call, client):
    assert call(PATH, {"input": "x", "model": "gpt-9"}).status == 404
    client.submit_errors = {0: QueueFullError("full", retry_after_s=2, reason="x")}
    assert call(PATH, {"input": "x", "stream": True}).status == 429


def test_a_fault_on_the_way(call, client):
    client.fail_after = 2
    assert call(PATH, {"input": "x"}).status == 500
    events = streamed(call, {"input": "x"})
    assert events[-1]["type"] == "response.failed"
    response = events[-1]["response"]
    assert response["status"] == "failed" and response["error"]["code"] == "server_error"
    assert "secret" not in str(events) and response["output"][0]["content"][0]["text"] == "Hi"
    client.fail_after = 0
    assert kinds(streamed(call, {"input": "x"})) == ["created", "in_progress", "failed"]


def test_the_fields_that_are_the_chats_are_as_there():
    for name, field in ConversationRequest.model_fields.items():
        chats = ChatRequest.model_fields[name]
        assert (field.annotation, field.default) == (chats.annotation, chats.default), name


@pytest.mark.parametrize("stream", [False, True])
def test_what_json_cannot_hold_is_told_back_as_what_it_can(call, stream):
    parameters = {"properties": {"\ud800": {"minimum": float("nan")}, "b": {"maximum": float("inf")}}}
    reply = call(PATH, {"input": "yo", "tools": [{**WEATHER, "parameters": parameters}], "stream": stream})
    response = events_of(reply)[-1]["response"] if stream else reply.json
    told = {"properties": {"?": {"minimum": None}, "b": {"maximum": None}}}
    assert response["status"] == "completed" and response["tools"][0]["parameters"] == told
