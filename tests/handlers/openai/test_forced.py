"""tool_choice required, or a function's name: the constraint, and what is read of answers that follow it."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer
from openai.types.chat import ChatCompletion

from paged_backend.config import EngineConfig
from paged_backend.handlers.openai.parsing.events import Message
from paged_backend.handlers.openai.tools import parse_tools
from paged_backend.models.folder import resolve_folder
from paged_backend.sampling_params import ReasoningTokens

from .parsing.conftest import events_of
from .test_tools import BODY, HELLO, PATH, SCHEMA, TIME, WEATHER, accumulated

NAMED = {"type": "function", "function": {"name": "weather"}}
TREE = {
    "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}, "value": {"enum": [1, 2]}}}},
    "properties": {"root": {"$ref": "#/$defs/node"}, "any": {"$ref": "#/properties/root"}},
    "required": ["root"],
    "additionalProperties": False,
}
LIST = {"type": "function", "function": {"name": "list", "parameters": TREE}}


@pytest.fixture(autouse=True)
def hermes(client):
    client.tokenizer.chat_template = "<tool_call>"
    client.max_model_len = 1000


def test_the_named_functions_arguments(call, client):
    client.text = '{"city": "Bonn"}'
    client.numbers_samples = False
    reply = call(PATH, {**BODY, "tool_choice": NAMED}).json
    ChatCompletion.model_validate(reply)
    (choice,) = reply["choices"]
    (made,) = choice["message"]["tool_calls"]
    assert made["function"] == {"name": "weather", "arguments": '{"city": "Bonn"}'}
    assert choice["message"]["content"] is None and choice["finish_reason"] == "stop", "as OpenAI has it"
    constraint = client.submissions[-1]["params"].structured_outputs
    assert constraint.json == SCHEMA
    chunks = call(PATH, {**BODY, "tool_choice": NAMED, "stream": True}).chunks
    assert accumulated(chunks)[0]["calls"] == [["weather", '{"city": "Bonn"}']]


def test_required_calls(call, client):
    calls = [{"name": "weather", "parameters": {"city": "Bonn"}}, {"name": "time", "parameters": {}}]
    client.text = json.dumps(calls)
    client.numbers_samples = False
    (choice,) = call(PATH, {**BODY, "tool_choice": "required"}).json["choices"]
    made = [made["function"] for made in choice["message"]["tool_calls"]]
    assert made == [{"name": "weather", "arguments": '{"city": "Bonn"}'}, {"name": "time", "arguments": "{}"}]
    assert choice["message"]["content"] is None and choice["finish_reason"] == "tool_calls"
    assert "maxItems" not in client.submissions[-1]["params"].structured_outputs.json
    cut = call(PATH, {**BODY, "tool_choice": "required", "max_tokens": 50, "stream": True}).chunks
    assert accumulated(cut)[0]["end"] == "length"
    assert call(PATH, {**BODY, "tool_choice": "required", "parallel_tool_calls": False}).status == 200
    assert client.submissions[-1]["params"].structured_outputs.json["maxItems"] == 1


def test_no_parser_is_needed(call, client):
    client.tokenizer.chat_template = "knows no tools"
    client.config = EngineConfig.from_args(enable_auto_tool_choice=False)
    for choice in ("required", NAMED):
        assert call(PATH, {**BODY, "tool_choice": choice}).status == 200


def test_reasoning_comes_first(call, client):
    encode, names = client.tokenizer.encode, {"<think>": "T", "</think>": "E"}  # one token each
    client.tokenizer.encode = lambda text, special=True: encode(names.get(text, text), special)
    client.tokenizer.chat_template = "<think> </think>"
    client.text = '<think>hm</think>\n{"city": "Bonn"}'
    client.numbers_samples = False
    (choice,) = call(PATH, {**BODY, "tool_choice": NAMED}).json["choices"]
    assert choice["message"]["reasoning"] == "hm" and choice["message"]["content"] is None
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Bonn"}'
    constraint = client.submissions[-1]["params"].structured_outputs
    assert constraint.json == SCHEMA and constraint.reasoning == ReasoningTokens(ord("T"), ord("E"), None)
    client.tokenizer.opening = "<think>\n\n</think>\n\n"
    assert call(PATH, {**BODY, "tool_choice": NAMED}).status == 200
    assert client.submissions[-1]["params"].structured_outputs.reasoning.is_open is False


def test_markers_that_are_no_tokens_are_not_waited_for(call, client):
    client.tokenizer.chat_template, client.tokenizer.opening = "<think> </think>", "<think>"
    client.text, client.numbers_samples = '{"city": "Bonn"}', False
    (choice,) = call(PATH, {**BODY, "tool_choice": NAMED}).json["choices"]
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Bonn"}'
    assert client.submissions[-1]["params"].structured_outputs.reasoning is None


@pytest.mark.parametrize(
    "other", [{"response_format": {"type": "json_object"}}, {"structured_outputs": {"choice": ["a"]}}]
)
def test_an_answer_cannot_be_two_things(call, client, other):
    reply = call(PATH, {**BODY, "tool_choice": "required", **other})
    assert reply.status == 400 and reply.error["param"] == "tool_choice"
    assert call(PATH, {**BODY, "tool_choice": "none", **other}).status == 200


def test_arguments_are_objects(call):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]
    assert call(PATH, {"messages": HELLO, "tools": tools}).error["param"] == "tools.0.function.parameters.type"


@pytest.fixture(scope="module")
def tokenizer():
    """The bundled model's tokens."""
    return LLTokenizer((resolve_folder("paged-tiny", None) / "tokenizer.json").read_text())


@pytest.mark.parametrize(
    ("choice", "single"),
    [("required", False), ("required", True), ({"type": "function", "function": {"name": "list"}}, True)],
)
def test_whatever_the_schema_allows_is_read_as_calls(tokenizer, choice, single):
    tool_use = parse_tools([WEATHER, TIME, LIST], choice)
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(tool_use.schema(single=single)))
    quotes = [token for token in range(tokenizer.vocab_size) if b'"' in tokenizer.decode_bytes([token])]
    num_complete = 0
    for seed in range(12):
        text, complete = _said(tokenizer, grammar, random.Random(seed), quotes)
        events = events_of([text], "required" if choice == "required" else "named")
        message = Message.of(events)
        for made in message.tool_calls[: None if complete else -1]:
            arguments = json.loads(made.arguments)
            if made.name in ("list", "f"):
                assert set(arguments) <= {"root", "any"} and "root" in arguments
            else:
                assert made.name in ("weather", "time")
                assert isinstance(arguments.get("city", ""), str) and (made.name == "time" or "city" in arguments)
        if complete:
            num_complete += 1
            assert message.content is None and 1 <= len(message.tool_calls) <= (1 if single else 99)
    assert num_complete


def _said(tokenizer, grammar, rng, quotes):
    """A text that a model of random weights would say under the grammar, and whether it came to its end."""
    matcher = LLMatcher(tokenizer, grammar)
    assert not matcher.is_error(), matcher.get_error()
    tokens = []
    for _ in range(200):
        mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        allowed = np.flatnonzero(np.unpackbits(mask, bitorder="little"))
        if matcher.is_stopped() or (matcher.is_accepting() and rng.random() < 0.5):
            return tokenizer.decode_str(tokens), True
        closing = np.intersect1d(allowed, quotes)  # left to chance, strings would be long
        chosen = int(rng.choice(closing if len(closing) and rng.random() < 0.3 else allowed))
        if chosen == tokenizer.eos_token:
            return tokenizer.decode_str(tokens), True
        matcher.consume_token(chosen)
        tokens.append(chosen)
    return tokenizer.decode_str(tokens), False
