"""/v1/responses and /v1/messages on a real engine, whose model says JSON and calls by grammars only."""

from __future__ import annotations

import functools
import json

import pytest

from .events import events_of
from .test_forced_with_engine import COLOUR, engine, painted, service, thinker  # noqa: F401 - fixtures

RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
STORY = "Tell me a story."
PAINT = COLOUR["function"]
TIME = {"name": "time", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}
SCHEMA = PAINT["parameters"]


def respond(call, stream, **fields):
    """A response, told whole or by its stream's last event."""
    reply = call(RESPONSES, {"input": STORY, "max_output_tokens": 300, "temperature": 1, "stream": stream, **fields})
    assert reply.status == 200, reply.body
    return events_of(reply)[-1]["response"] if stream else reply.json


def message(call, stream, **fields):
    """The blocks of a message, and why it stopped."""
    body = {"messages": [{"role": "user", "content": STORY}], "max_tokens": 300, "temperature": 1, "stream": stream}
    reply = call(MESSAGES, {**body, **fields})
    assert reply.status == 200, reply.body
    if not stream:
        return reply.json["content"], reply.json["stop_reason"]
    blocks, reason = [], None
    for event in events_of(reply):
        match event["type"]:
            case "content_block_start":
                blocks.append({**event["content_block"], "json": ""})
            case "content_block_delta":
                for name, text in event["delta"].items():
                    if name != "type":
                        name = {"partial_json": "json"}.get(name, name)
                        blocks[-1][name] += text
            case "message_delta":
                reason = event["delta"]["stop_reason"]
    for block in blocks:
        if block["type"] == "tool_use":
            block["input"] = json.loads(block["json"])
    return blocks, reason


def openai_tools(*functions):
    return [{"type": "function", "strict": True, **function} for function in functions]


def anthropic_tools(*functions, **fields):
    return [{"name": one["name"], "input_schema": one["parameters"], **fields} for one in functions]


def check_call(name, arguments):
    if name == "paint":
        painted(json.dumps(arguments))
    else:
        assert (name, arguments) == ("time", {})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_json_that_fits_a_schema(call, stream, seed):
    form = {"type": "json_schema", "name": "paint", "schema": SCHEMA, "strict": True}
    response = respond(call, stream, seed=seed, text={"format": form})
    (item,) = response["output"]
    assert (response["status"], item["status"], response["text"]["format"]["schema"]) == (*["completed"] * 2, SCHEMA)
    painted(item["content"][0]["text"])
    form = {"type": "json_schema", "schema": SCHEMA}
    (block,), reason = message(call, stream, seed=seed, output_config={"format": form})
    assert (block["type"], reason) == ("text", "end_turn")
    painted(block["text"])


@pytest.mark.parametrize("stream", [False, True])
def test_json_that_is_one_of_two(call, stream):
    schema = {"enum": [{"a": 1}, {"b": [True, None]}]}
    form = {"type": "json_schema", "name": "one", "schema": schema}
    text = respond(call, stream, text={"format": form})["output"][0]["content"][0]["text"]
    assert json.loads(text) in schema["enum"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("seed", [1, 2])
def test_required_calls(call, stream, seed):
    response = respond(
        call, stream, seed=seed, tools=openai_tools(PAINT, TIME), tool_choice="required", parallel_tool_calls=False
    )
    (item,) = response["output"]
    assert (item["type"], item["status"], response["status"]) == ("function_call", "completed", "completed")
    check_call(item["name"], json.loads(item["arguments"]))
    choice = {"type": "any", "disable_parallel_tool_use": True}
    (block,), reason = message(call, stream, seed=seed, tools=anthropic_tools(PAINT, TIME), tool_choice=choice)
    assert (block["type"], reason) == ("tool_use", "tool_use")
    check_call(block["name"], block["input"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_named_call(call, stream, seed):
    tools = openai_tools(TIME, PAINT)
    response = respond(call, stream, seed=seed, tools=tools, tool_choice={"type": "function", "name": "paint"})
    (item,) = response["output"]
    assert (item["type"], item["name"], response["status"]) == ("function_call", "paint", "completed")
    painted(item["arguments"])
    tools = anthropic_tools(TIME, PAINT, input_examples=[{"colour": "red", "coats": 1}])
    (block,), reason = message(call, stream, seed=seed, tools=tools[1:], tool_choice={"type": "tool", "name": "paint"})
    assert (block["type"], block["name"], reason) == ("tool_use", "paint", "tool_use")
    painted(json.dumps(block["input"]))


@pytest.fixture
def ask_thinker(call, thinker):  # noqa: F811
    """`call` with the model that marks its reasoning."""
    return functools.partial(call, service=thinker)


def tokens_of(service, text):  # noqa: F811
    return service._context.engine.tokenizer.encode(text, False)


@pytest.mark.parametrize("stream", [False, True])
def test_a_bounded_thought_comes_first(ask_thinker, thinker, stream):  # noqa: F811
    asked = {"tools": anthropic_tools(PAINT), "tool_choice": {"type": "tool", "name": "paint"}, "min_tokens": 20}
    asked |= {"chat_template_kwargs": {"opens": True}}
    thinking = {"type": "enabled", "budget_tokens": 7}
    blocks, _ = message(ask_thinker, stream, thinking=thinking, **asked)
    assert [block["type"] for block in blocks] == ["thinking", "tool_use"]
    assert len(tokens_of(thinker, blocks[0]["thinking"])) <= 7
    painted(json.dumps(blocks[1]["input"]))
    blocks, _ = message(ask_thinker, stream, thinking={**thinking, "display": "omitted"}, **asked)
    assert [block["type"] for block in blocks] == ["tool_use"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("opens", [False, True])
def test_log_probabilities_are_the_texts(ask_thinker, thinker, opens, stream):  # noqa: F811
    (end,) = tokens_of(thinker, "</think>")
    form = {"type": "json_schema", "name": "one", "schema": {"enum": ["The fox sat under the oak tree."]}}
    response = respond(
        ask_thinker,
        stream,
        text={"format": form},
        top_logprobs=2,
        seed=5,
        logit_bias={str(end): 8.0},
        chat_template_kwargs={"opens": opens},
    )
    assert [item["type"] for item in response["output"]] == ["reasoning"] * opens + ["message"]
    (part,) = response["output"][-1]["content"]
    assert "".join(entry["token"] for entry in part["logprobs"]) == part["text"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in part["logprobs"])
