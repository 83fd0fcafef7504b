"""/v1/chat/completions with tools: what the template gets, what the parsers give, and what is refused."""

from __future__ import annotations

import json

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from paged_backend.config import EngineConfig

PATH = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "yo"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Says it.", "parameters": SCHEMA}}
TIME = {"type": "function", "function": {"name": "time"}}
BODY = {"messages": HELLO, "tools": [WEATHER, TIME], "max_tokens": 400}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call>'


@pytest.fixture(autouse=True)
def hermes(client):
    """A model that writes calls in Hermes' style, and has room for them."""
    client.tokenizer.chat_template = "<tool_call> developer"
    client.max_model_len = 1000


def configure(client, **fields):
    client.config = EngineConfig.from_args(**fields)


def say(client, text):
    """Makes every sample say a text; the scripted engine adds the sample's index."""
    client.text = text


def accumulated(chunks):
    """What an OpenAI client makes of a stream's chunks, for each sample."""
    messages = {}
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
        for choice in chunk["choices"]:
            message = messages.setdefault(choice["index"], {"content": "", "reasoning": "", "calls": [], "end": None})
            delta = choice["delta"]
            message["content"] += delta.get("content") or ""
            message["reasoning"] += delta.get("reasoning") or ""
            message["end"] = choice["finish_reason"] or message["end"]
            for call in delta.get("tool_calls", ()):
                if call["index"] == len(message["calls"]):
                    assert call["type"] == "function" and call["id"] and call["function"]["arguments"] == ""
                    message["calls"].append([call["function"]["name"], ""])
                else:
                    assert set(call) == {"index", "function"} and set(call["function"]) == {"arguments"}
                    message["calls"][call["index"]][1] += call["function"]["arguments"]
    return messages


def test_a_call(call, client):
    say(client, f"Let me see. {CALL}{CALL}")
    reply = call(PATH, {**BODY, "n": 2}).json
    ChatCompletion.model_validate(reply)
    ids = []
    for choice in reply["choices"]:
        message = choice["message"]
        assert message["content"] == f"Let me see.{choice['index']}"
        assert choice["finish_reason"] == "tool_calls"
        for made in message["tool_calls"]:
            ids.append(made["id"])
            assert made["type"] == "function"
            assert made["function"] == {"name": "weather", "arguments": '{"city": "Bonn"}'}
    assert len(set(ids)) == 4 and all(one.startswith("chatcmpl-tool-") for one in ids)


def test_a_streamed_call(call, client):
    say(client, f"Let me see. {CALL}{CALL}")
    chunks = call(PATH, {**BODY, "n": 2, "stream": True}).chunks
    for index, message in accumulated(chunks).items():
        assert message["content"] == f"Let me see.{index}"
        assert message["calls"] == [["weather", '{"city": "Bonn"}']] * 2
        assert message["end"] == "tool_calls"
    pieces = [
        tool["function"]["arguments"]
        for chunk in chunks
        for choice in chunk["choices"]
        if choice["index"] == 0
        for tool in choice["delta"].get("tool_calls", ())
    ]
    assert len(pieces) > 20, "arguments come as they are written"


def test_no_call_is_content_at_once(call, client):
    say(client, "It is <b>warm</b>")
    assert call(PATH, BODY).json["choices"][0]["message"]["content"] == "It is <b>warm</b>0"
    chunks = call(PATH, {**BODY, "stream": True}).chunks
    assert accumulated(chunks)[0] == {"content": "It is <b>warm</b>0", "reasoning": "", "calls": [], "end": "stop"}
    first = [chunk["choices"][0]["delta"] for chunk in chunks[:4]]
    assert [delta["content"] for delta in first] == ["", "I", "t", " i"], "but white space waits for what follows"


def test_malformed_calls_are_content(call, client):
    text = '<tool_call>{"name": "weather", "arguments": {"city": Bonn}}</tool_call>'
    say(client, text)
    choice = call(PATH, BODY).json["choices"][0]
    assert choice["message"]["content"] == f"{text}0" and "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "stop"


def test_a_call_that_is_cut_short(call, client):
    say(client, CALL)
    choice = call(PATH, {**BODY, "max_tokens": len(CALL) - 20}).json["choices"][0]
    assert choice["finish_reason"] == "length" and choice["message"]["content"] == CALL[:-20]


def test_one_call_at_most(call, client):
    say(client, CALL + CALL)
    body = {**BODY, "parallel_tool_calls": False}
    assert len(call(PATH, body).json["choices"][0]["message"]["tool_calls"]) == 1
    assert len(accumulated(call(PATH, {**body, "stream": True}).chunks)[0]["calls"]) == 1


def test_what_the_template_gets(call, client):
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True, "description": None}}
    assert call(PATH, {**BODY, "tools": [strict]}).status == 200
    function = {"name": "weather", "parameters": SCHEMA}
    assert [dict(tool) for tool in client.tokenizer.template_arguments["tools"]] == [
        {"type": "function", "function": function}
    ]


def test_none_still_shows_the_tools(call, client):
    say(client, CALL)
    reply = call(PATH, {**BODY, "tool_choice": "none"}).json["choices"][0]
    assert reply["message"]["content"] == f"{CALL}0" and reply["finish_reason"] == "stop"
    assert len(client.tokenizer.template_arguments["tools"]) == 2
    configure(client, exclude_tools_when_tool_choice_none=True)
    assert call(PATH, {**BODY, "tool_choice": "none"}).status == 200
    assert client.tokenizer.template_arguments["tools"] is None


def test_a_conversation_with_calls(call, client):
    made = {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [made], "reasoning": "hm"},
        {"role": "tool", "tool_call_id": "t1", "content": [{"type": "text", "text": "warm"}]},
    ]
    assert call(PATH, {**BODY, "messages": messages}).status == 200
    arguments = {"name": "weather", "arguments": {"city": "Bonn"}}
    assert client.tokenizer.messages == [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": "",
            "reasoning": "hm",
            "tool_calls": [{"id": "t1", "type": "function", "function": arguments}],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "warm"},
    ]


def test_special_markers_stay_in_the_text(call, client):
    assert call(PATH, BODY).status == 200
    assert client.submissions[-1]["params"].skip_special_tokens is True
    decode = client.tokenizer.decode
    client.tokenizer.decode = lambda ids, skip=True: decode(ids, skip).replace("<tool_call>", "" if skip else "?")
    assert call(PATH, BODY).status == 200
    assert client.submissions[-1]["params"].skip_special_tokens is False


@pytest.mark.parametrize(
    ("style", "template", "text"),
    [
        ("llama3_json", "<|start_header_id|> ipython parameters", '{"name": "time", "parameters": {}}; '),
        ("mistral", "[TOOL_CALLS]", '[TOOL_CALLS][{"name": "time", "arguments": {}}]'),
    ],
)
@pytest.mark.parametrize("is_configured", [False, True])
def test_other_styles(call, client, style, template, text, is_configured):
    if is_configured:
        configure(client, tool_call_parser=style)
    else:
        client.tokenizer.chat_template = template
    say(client, text)
    (made,) = call(PATH, BODY).json["choices"][0]["message"]["tool_calls"]
    assert made["function"] == {"name": "time", "arguments": "{}"}
    assert (len(made["id"]) == 9) == (style == "mistral")


@pytest.mark.parametrize(
    "template", ["plain", "[TOOL_CALLS] <tool_call>", "<tool_call><function=f>", "<tool_call><arg_key>"]
)
def test_an_unknown_style_is_refused(call, client, template):
    client.tokenizer.chat_template = template
    reply = call(PATH, BODY)
    assert reply.status == 400 and reply.error["param"] == "tool_choice"
    assert "tool_call_parser" in reply.error["message"]
    assert call(PATH, {**BODY, "tool_choice": "none"}).status == 200


def test_auto_may_be_off(call, client):
    configure(client, enable_auto_tool_choice=False)
    reply = call(PATH, {**BODY, "tool_choice": "auto"})
    assert reply.status == 400 and reply.error["param"] == "tool_choice"
    assert "enable_auto_tool_choice" in reply.error["message"]


def function(**fields):
    return [{"type": "function", "function": {"name": "f", **fields}}]


def deep(levels):
    return {"a": deep(levels - 1)} if levels else {}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": {}}, "body.tools"),
        ({"tools": "f"}, "body.tools"),
        ({"tools": [3]}, "body.tools.0"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{**TIME, "x": 1}]}, "tools.0.x"),
        ({"tools": [{"type": "function", "function": 3}]}, "body.tools.0.function"),
        ({"tools": function(name="")}, "tools.0.function.name"),
        ({"tools": function(name="a b")}, "tools.0.function.name"),
        ({"tools": function(name="a\n")}, "tools.0.function.name"),
        ({"tools": function(name=3)}, "tools.0.function.name"),
        ({"tools": function(desciption="x")}, "tools.0.function.desciption"),
        ({"tools": function(description=3)}, "body.tools.0.function.description"),
        ({"tools": function(description="\ud800")}, "tools.0.function.description"),
        ({"tools": function(parameters=[])}, "body.tools.0.function.parameters"),
        ({"tools": function(parameters=deep(70))}, "tools.0.function.parameters"),
        ({"tools": function(strict="yes")}, "body.tools.0.function.strict"),
        ({"tools": function(strict=1)}, "body.tools.0.function.strict"),
        ({"tools": [TIME, TIME]}, "tools.1.function.name"),
        ({"tool_choice": "always"}, "tool_choice"),
        ({"tool_choice": 3}, "body.tool_choice"),
        ({"tool_choice": {"type": "function"}}, "body.tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f", "x": 1}}}, "tool_choice.function.x"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}, "x": 1}}, "tool_choice.x"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice.function.name"),
        ({"tool_choice": {"type": "allowed_tools", "tools": []}}, "tool_choice.type"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tools": None, "tool_choice": "auto"}, "tool_choice"),
        ({"parallel_tool_calls": 1}, "body.parallel_tool_calls"),
    ],
)
def test_refusals(call, client, fields, param):
    reply = call(PATH, {**BODY, **fields})
    assert reply.status == 400 and reply.error["param"] == param
    assert client.submissions == []


@pytest.mark.parametrize(
    ("made", "param"),
    [
        ("x", "body.messages.0.tool_calls"),
        (False, "body.messages.0.tool_calls"),
        (["x"], "body.messages.0.tool_calls.0"),
        ([{"type": "custom", "function": {}}], "messages.0.tool_calls.0.type"),
        ([{"function": {"name": 3}}], "body.messages.0.tool_calls.0.function.name"),
        ([{"id": 3, "function": {"name": "f"}}], "body.messages.0.tool_calls.0.id"),
        ([{"function": {"name": "f", "arguments": "{"}}], "messages.0.tool_calls.0.function.arguments"),
        ([{"function": {"name": "f", "arguments": "3"}}], "messages.0.tool_calls.0.function.arguments"),
        (
            [{"function": {"name": "f", "arguments": json.dumps(deep(70))}}],
            "messages.0.tool_calls.0.function.arguments",
        ),
        ([{"function": {"name": "f", "arguments": "[" * 100_000}}], "messages.0.tool_calls.0.function.arguments"),
    ],
)
def test_calls_of_a_conversation_are_checked(call, made, param):
    reply = call(PATH, {"messages": [{"role": "assistant", "tool_calls": made}]})
    assert reply.status == 400 and reply.error["param"] == param
    reply = call(PATH, {"messages": [{"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}]})
    assert reply.error["param"] == "messages.0.tool_calls"


@pytest.mark.parametrize("text", [f"Let me see.\n{CALL}\n{CALL}", CALL, "no call"])
def test_openais_client_reads_streams_as_it_reads_whole_answers(call, client, text):
    def answer(request):
        reply = call(PATH, request.content)
        return httpx.Response(reply.status, headers=reply.headers, content=reply.body)

    say(client, text)
    client.numbers_samples = False
    transport = httpx.Client(transport=httpx.MockTransport(answer))
    api = openai.OpenAI(api_key="none", base_url="http://x/v1", http_client=transport)
    whole = api.chat.completions.create(model="tiny", **BODY).choices[0]
    with api.chat.completions.stream(model="tiny", **BODY) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == whole.finish_reason
    assert (streamed.message.content or None) == whole.message.content
    made = [(one.function.name, one.function.arguments) for one in whole.message.tool_calls or ()]
    assert [(one.function.name, one.function.arguments) for one in streamed.message.tool_calls or ()] == made
    assert len(made) == text.count("<tool_call>")
