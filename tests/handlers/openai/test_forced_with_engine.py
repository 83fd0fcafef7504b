"""Calls and reasoning of the bundled model, which knows nothing of either: grammars make it say them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from paged_backend.config import EngineConfig
from paged_backend.engine.client import EngineClient
from paged_backend.handlers.openai.served_models import ServedModels
from paged_backend.handlers.openai.service import OpenAIService
from paged_backend.models.folder import resolve_folder

from .test_tools import PATH, TIME, WEATHER, accumulated

TEMPLATE = (
    "{% for tool in tools or [] %}<tool_call> {{ tool | tojson }}{% endfor %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COLOUR = {
    "type": "function",
    "function": {
        "name": "paint",
        "parameters": {
            "type": "object",
            "properties": {
                "colour": {"enum": ["red", "blue"]},
                "coats": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["colour", "coats"],
            "additionalProperties": False,
        },
    },
}
BODY = {
    "messages": [{"role": "user", "content": "Tell me a story."}],
    "tools": [WEATHER, TIME, COLOUR],
    "max_tokens": 300,
    "seed": 3,
}
NAMED = {"type": "function", "function": {"name": "paint"}}


@pytest.fixture(scope="module")
def engine() -> Iterator[EngineClient]:
    client = EngineClient.start(EngineConfig.from_args(max_num_seqs=8, chat_template=TEMPLATE))
    yield client
    client.shutdown()


@pytest.fixture
def service(engine):
    return OpenAIService(ServedModels.one(engine, ("paged-tiny",)))


def painted(arguments):
    """Checks arguments of `paint`."""
    value = json.loads(arguments)
    assert set(value) == {"colour", "coats"} and value["colour"] in ("red", "blue") and 1 <= value["coats"] <= 9


@pytest.mark.parametrize("stream", [False, True])
def test_a_named_call(call, stream):
    body = {**BODY, "tool_choice": NAMED, "n": 3, "stream": stream}
    if stream:
        messages = accumulated(call(PATH, body).chunks)
        made = [message["calls"] for message in messages.values()]
    else:
        choices = call(PATH, body).json["choices"]
        made = [[list(one["function"].values()) for one in choice["message"]["tool_calls"]] for choice in choices]
    assert len(made) == 3
    for ((name, arguments),) in made:
        assert name == "paint"
        painted(arguments)


def test_required_calls(call):
    body = {**BODY, "tool_choice": "required", "tools": [TIME, COLOUR], "parallel_tool_calls": False}
    for seed in range(4):
        (choice,) = call(PATH, {**body, "seed": seed}).json["choices"]
        (made,) = choice["message"]["tool_calls"]
        assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
        if made["function"]["name"] == "paint":
            painted(made["function"]["arguments"])
        else:
            assert made["function"] == {"name": "time", "arguments": "{}"}


def test_the_style_that_the_template_speaks(call):
    text = 'Well.\n<tool_call>{"name": "paint", "arguments": {"colour": "red", "coats": 2}}</tool_call>'
    body = {**BODY, "structured_outputs": {"choice": [text]}}
    (choice,) = call(PATH, body).json["choices"]
    assert choice["message"]["content"] == "Well." and choice["finish_reason"] == "tool_calls"
    (made,) = choice["message"]["tool_calls"]
    assert made["function"] == {"name": "paint", "arguments": '{"colour": "red", "coats": 2}'}
    streamed = accumulated(call(PATH, {**body, "stream": True}).chunks)[0]
    assert streamed["calls"] == [["paint", '{"colour": "red", "coats": 2}']] and streamed["content"] == "Well."


@pytest.mark.parametrize("parameters", [{"type": "object", "properties": {"a": {"type": "nonsense"}}}])
def test_an_impossible_schema_names_the_tools(call, parameters):
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    reply = call(PATH, {**BODY, "tools": tools, "tool_choice": "required"})
    assert reply.status == 400 and reply.error["param"] == "tools"


@pytest.fixture(scope="module")
def thinker(tmp_path_factory) -> Iterator[OpenAIService]:
    """The bundled model, two of whose tokens are called <think> and </think>."""
    folder = tmp_path_factory.mktemp("thinker")
    for file in resolve_folder("paged-tiny", None).iterdir():
        text = file.read_bytes()
        if file.name.startswith("tokenizer"):
            text = text.replace(b"<|pad|>", b"<think>").replace(b"<|im_start|>", b"</think>")
        (folder / file.name).write_bytes(text)
    template = "{{ messages[0].content }}{% if opens %}<think>\n{% endif %}{# </think> #}"
    client = EngineClient.start(EngineConfig.from_args(model=str(folder), max_num_seqs=8, chat_template=template))
    yield OpenAIService(ServedModels.one(client, ("thinker",)))
    client.shutdown()


@pytest.mark.parametrize("stream", [False, True])
def test_a_bounded_thought_before_a_call(call, thinker, stream):
    body = {**BODY, "tool_choice": NAMED, "chat_template_kwargs": {"opens": True}, "thinking_token_budget": 7, "n": 2}
    body |= {"stream": stream, "min_tokens": 20, **({"stream_options": {"include_usage": True}} if stream else {})}
    if stream:
        *chunks, last = call(PATH, body, service=thinker).chunks
        usage = last["usage"]
        messages = [(one["reasoning"], one["calls"]) for one in accumulated(chunks).values()]
    else:
        reply = call(PATH, body, service=thinker).json
        usage = reply["usage"]
        messages = [
            (one["message"]["reasoning"], [list(made["function"].values()) for made in one["message"]["tool_calls"]])
            for one in reply["choices"]
        ]
    assert len(messages) == 2 and usage["completion_tokens_details"]["reasoning_tokens"] <= 14
    for reasoning, ((name, arguments),) in messages:
        assert reasoning and "{" not in reasoning and name == "paint"
        painted(arguments)


def test_an_answer_in_json_after_a_thought(call, thinker):
    # With any white space, a model that knows no JSON seldom comes to its end.
    structure = {"json": COLOUR["function"]["parameters"], "disable_any_whitespace": True}
    body = {
        "messages": BODY["messages"],
        "structured_outputs": structure,
        "thinking_token_budget": 4,
        "max_tokens": 200,
    }
    for seed in range(3):
        options = {"seed": seed, "chat_template_kwargs": {"opens": True}}
        message = call(PATH, {**body, **options}, service=thinker).json["choices"][0]["message"]
        assert message["reasoning"]
        painted(message["content"])
        message = call(PATH, {**body, "seed": seed}, service=thinker).json["choices"][0]["message"]
        painted(message["content"])
