"""What the published SDKs send back of what they got: every turn of a conversation is taken, whole or streamed.

The packages themselves make the requests, on a transport that hands them to the service.
"""

from __future__ import annotations

import functools
import json
import operator

import anthropic
import httpx
import httpx2
import openai
import pydantic
import pytest

CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Bonn"}}</tool_call>'
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION = {"type": "function", "function": {"name": "weather", "description": "Says it.", "parameters": SCHEMA}}
HELLO = {"role": "user", "content": "yo"}


class Weather(pydantic.BaseModel):
    """A tool, and a form for texts."""

    city: str


@pytest.fixture(autouse=True)
def model(client):
    """A model that reasons, speaks and calls a tool."""
    client.tokenizer.chat_template = "<think> </think> <tool_call> developer"
    client.max_model_len = 2000
    client.text, client.numbers_samples = f"<think>hm</think>So.{CALL}", False


def http_client(package, call):
    """The package's HTTP client, whose server is the service."""

    def answer(request):
        reply = call(request.url.path, request.read(), headers=dict(request.headers))
        return package.Response(reply.status, headers=reply.headers, content=reply.body)

    return package.Client(transport=package.MockTransport(answer))


@pytest.fixture
def api(call):
    return openai.OpenAI(base_url="http://here/v1", api_key="none", http_client=http_client(httpx, call), max_retries=0)


@pytest.fixture
def responses(api):
    return api.responses


@pytest.fixture
def chat(api):
    return api.chat.completions


@pytest.fixture
def messages(call):
    http = http_client(httpx2, call)
    return anthropic.Anthropic(base_url="http://here", api_key="none", http_client=http, max_retries=0).messages


def dumps(items):
    """What clients make of items to send them back: themselves, or dicts with or without what is null."""
    return {
        "as they are": items,
        "dumped": [item.model_dump() for item in items],
        "as JSON": [json.loads(item.model_dump_json(by_alias=True)) for item in items],
        "to_dict": [item.to_dict() for item in items],
    }


def check_turns(client, num_tools=1, thought="hm"):
    """The template has got the whole of what was said."""
    user, assistant, *tools = client.tokenizer.messages
    assert user == HELLO and len(tools) == num_tools
    assert (assistant["reasoning"], assistant["content"]) == (thought, "So.")
    assert [made["function"]["name"] for made in assistant["tool_calls"]] == ["weather"]


def asked_openai(responses):
    """The same response three ways."""
    tool = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}
    body = {"model": "tiny", "input": [HELLO], "tools": [tool]}
    yield responses.create(**body).output
    with responses.stream(**body) as stream:
        yield stream.get_final_response().output
    yield list(responses.create(**body, stream=True))[-1].response.output


def test_openai_sends_its_output_back(responses, client):
    for output in asked_openai(responses):
        assert [item.type for item in output] == ["reasoning", "message", "function_call"]
        for items in dumps(output).values():
            answer = {"type": "function_call_output", "call_id": output[-1].call_id, "output": "sunny"}
            responses.create(model="tiny", input=[HELLO, *items, answer])
            check_turns(client)
            assert client.tokenizer.messages[-1]["content"] == "sunny"


def test_openai_sends_back_what_it_has_parsed(responses, client):
    tool = {**openai.pydantic_function_tool(Weather, name="weather")["function"], "type": "function"}
    parsed = responses.parse(model="tiny", input=[HELLO], tools=[tool]).output
    assert parsed[-1].parsed_arguments == {"city": "Bonn"}
    for items in dumps(parsed).values():
        responses.create(model="tiny", input=[HELLO, *items])
        check_turns(client, 0)
    client.text = '{"city": "Bonn"}'
    said = responses.parse(model="tiny", input=[HELLO], text_format=Weather)
    assert said.output_parsed.city == "Bonn"
    for items in dumps(said.output).values():
        responses.create(model="tiny", input=[HELLO, *items])
        assert client.tokenizer.messages[-1] == {"role": "assistant", "content": client.text}


def asked_chat(chat):
    """The same message three ways."""
    body = {"model": "tiny", "messages": [HELLO]}
    yield chat.create(**body, tools=[FUNCTION]).choices[0].message
    with chat.stream(**body, tools=[FUNCTION]) as stream:
        yield stream.get_final_completion().choices[0].message
    parsed = chat.parse(**body, tools=[openai.pydantic_function_tool(Weather, name="weather")]).choices[0].message
    assert parsed.tool_calls[0].function.parsed_arguments.city == "Bonn"
    yield parsed


def test_openai_sends_its_chat_back(chat, client):
    for message in asked_chat(chat):
        (made,) = message.tool_calls
        for turns in dumps([message]).values():
            result = {"role": "tool", "tool_call_id": made.id, "content": [{"type": "text", "text": "sunny"}]}
            chat.create(model="tiny", messages=[HELLO, *turns, result])
            check_turns(client)
            assert client.tokenizer.messages[-1] == {"role": "tool", "tool_call_id": made.id, "content": "sunny"}


def test_openai_sends_back_the_chat_that_it_has_parsed(chat, client):
    client.text = '{"city": "Bonn"}'
    said = chat.parse(model="tiny", messages=[HELLO], response_format=Weather).choices[0].message
    assert said.parsed.city == "Bonn"
    for turns in dumps([said]).values():
        chat.create(model="tiny", messages=[HELLO, *turns, HELLO])
        assert client.tokenizer.messages[1] == {"role": "assistant", "content": client.text}


def asked_anthropic(messages):
    """The same message three ways."""
    body = {"model": "tiny", "max_tokens": 500, "messages": [HELLO], "thinking": {"type": "adaptive"}}
    body["tools"] = [{"name": "weather", "input_schema": SCHEMA}]
    yield messages.create(**body).content
    with messages.stream(**body) as stream:
        yield stream.get_final_message().content
    yield messages.parse(**body).content


def test_anthropic_sends_its_content_back(messages, client):
    for content in asked_anthropic(messages):
        assert [block.type for block in content] == ["thinking", "text", "tool_use"]
        for blocks in dumps(content).values():
            result = {"type": "tool_result", "tool_use_id": content[-1].id, "content": "sunny"}
            turns = [HELLO, {"role": "assistant", "content": blocks}, {"role": "user", "content": [result]}]
            messages.create(model="tiny", max_tokens=5, messages=turns)
            check_turns(client)
            assert messages.count_tokens(model="tiny", messages=turns).input_tokens > 0


def test_anthropic_sends_back_what_it_has_parsed(messages, client):
    client.text = '{"city": "Bonn"}'
    asked = {"model": "tiny", "max_tokens": 100}
    message = messages.parse(**asked, messages=[HELLO], output_format=Weather)
    assert message.parsed_output.city == "Bonn"
    for blocks in dumps(message.content).values():
        messages.create(**asked, messages=[HELLO, {"role": "assistant", "content": blocks}, HELLO])
        assert client.tokenizer.messages[1] == {"role": "assistant", "content": client.text}


@pytest.mark.slow
@pytest.mark.parametrize("version", ["responses/v1", "v1"])
def test_langchain_sends_its_messages_back(call, client, version):
    langchain_openai = pytest.importorskip("langchain_openai")
    from langchain_core.messages import HumanMessage, ToolMessage

    chat = langchain_openai.ChatOpenAI(
        base_url="http://here/v1",
        api_key="none",
        model="tiny",
        use_responses_api=True,
        output_version=version,
        http_client=http_client(httpx, call),
    ).bind_tools([{"name": "weather", "description": "Says it.", "parameters": SCHEMA}])
    # What it gathers of a stream has summaries of reasoning only, of which there are none.
    for said, thought in ((chat.invoke("yo"), "hm"), (functools.reduce(operator.add, chat.stream("yo")), "")):
        (made,) = said.tool_calls
        chat.invoke([HumanMessage("yo"), said, ToolMessage("sunny", tool_call_id=made["id"])])
        check_turns(client, thought=thought)


@pytest.mark.slow
def test_langchain_sends_its_chat_back(call, client):
    langchain_openai = pytest.importorskip("langchain_openai")
    from langchain_core.messages import HumanMessage, ToolMessage

    chat = langchain_openai.ChatOpenAI(
        base_url="http://here/v1", api_key="none", model="tiny", http_client=http_client(httpx, call)
    ).bind_tools([FUNCTION])
    for said in (chat.invoke("yo"), functools.reduce(operator.add, chat.stream("yo"))):
        (made,) = said.tool_calls
        chat.invoke([HumanMessage("yo"), said, ToolMessage("sunny", tool_call_id=made["id"], name="weather")])
        user, assistant, tool = client.tokenizer.messages
        assert (user, assistant["content"], tool["content"]) == (HELLO, "So.", "sunny")  # it keeps no reasoning
        assert assistant["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Bonn"}}


@pytest.fixture
def litellm(monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or its import asks the network
    return pytest.importorskip("litellm")


@pytest.mark.slow
@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_litellm_sends_its_chat_back(call, client, api, litellm, provider):
    from litellm.llms.custom_httpx.http_handler import HTTPHandler

    http = api if provider == "openai" else HTTPHandler(client=http_client(httpx, call))
    asked = {"model": f"{provider}/tiny", "api_base": "http://here/v1", "api_key": "none", "client": http}
    asked["tools"] = [{**FUNCTION, "cache_control": {"type": "ephemeral"}}]
    whole = litellm.completion(messages=[HELLO], **asked)
    streamed = litellm.stream_chunk_builder(list(litellm.completion(messages=[HELLO], stream=True, **asked)))
    for answer in (whole, streamed):
        message = answer.choices[0].message
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}
        for turn in (message, message.model_dump()):
            litellm.completion(messages=[HELLO, turn, result], **asked)
            user, assistant, tool = client.tokenizer.messages
            assert (user, assistant["content"], tool["content"]) == (HELLO, "So.", "sunny")
            assert assistant["reasoning_content"] == "hm"
            assert assistant["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Bonn"}}


@pytest.mark.slow
def test_litellm_sends_its_messages_back(call, client, litellm):
    from litellm.llms.custom_httpx.http_handler import HTTPHandler

    http = HTTPHandler(client=http_client(httpx, call))
    asked = {"model": "anthropic/tiny", "api_base": "http://here/v1/messages", "api_key": "none", "client": http}
    asked |= {
        "tools": [FUNCTION],
        "max_tokens": 500,
        "thinking": {"type": "adaptive"},
        "allowed_openai_params": ["thinking"],
    }
    message = litellm.completion(messages=[HELLO], **asked).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}
    for turn in (message, message.model_dump()):
        litellm.completion(messages=[HELLO, turn, result], **asked)
        check_turns(client)
