"""Log probabilities of /v1/responses: of the text's own tokens, and of no others."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paged_backend.handlers.openai.parsing.events import Content
from paged_backend.handlers.openai.text_logprobs import TextTokens

from .events import events_of
from .parsing.conftest import parser
from .parsing.test_properties import MARKERS, STYLES

PATH = "/v1/responses"
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Bonn"}}</tool_call>'


def text_of(tokens, *styles, **options):
    """What the tokens say that are taken for text."""
    reader = TextTokens(parser(*styles, **options))
    known = [entry for token in tokens for entry in reader.add({"token": token}, token)]
    return "".join(entry["token"] for entry in [*known, *reader.finish()])


def content_of(text, *styles, **options):
    """What the parser takes for it."""
    reader = parser(*styles, **options)
    events = [*reader.push(text), *reader.finish()]
    return "".join(event.text for event in events if isinstance(event, Content))


@settings(max_examples=100)
@given(st.sampled_from([None, *STYLES]), st.lists(st.sampled_from(MARKERS), max_size=14), st.booleans())
@pytest.mark.parametrize("reasoning", [None, "qwen3", "deepseek_r1"])
def test_tokens_of_a_character_make_the_text(reasoning, style, parts, single):
    options = {"is_open": True if reasoning == "deepseek_r1" else None, "single_call": single}
    text = "".join(parts)
    assert text_of(text, style, reasoning, **options) == content_of(text, style, reasoning, **options)


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (["<think>", "h", "m", "</think>", "So", "."], "So."),
        (["<", "think", ">", "hm", "</", "think", ">", "So", "."], "So."),
        (["So", ".", "\n", "<tool_call>", '{"name": "f", "arguments"', ": {}}", "</tool_call>"], "So."),
        (["So", " <tool", "_", "s"], "So <tool_s"),
        (["<think>", "hm"], ""),
        (["a", "", "b"], "ab"),
    ],
)
def test_tokens_as_models_have_them(tokens, said):
    assert text_of(tokens, "hermes", "qwen3") == said


def logprobs_of(response):
    parts = [part for item in response["output"] if item["type"] == "message" for part in item["content"]]
    return ["".join(part["text"] for part in parts), [entry for part in parts for entry in part["logprobs"]]]


@pytest.mark.parametrize("text", ["So be it.", "<think>hm</think>So be it.", f"<think>hm</think>So be it.\n{CALL}"])
def test_they_are_the_texts(call, client, text):
    client.tokenizer.chat_template = "<think> </think> <tool_call>"
    client.max_model_len = 1000
    client.text, client.numbers_samples = text, False
    body = {"input": "yo", "top_logprobs": 1, "tools": [WEATHER]}
    said, whole = logprobs_of(call(PATH, body).json)
    assert said == "".join(entry["token"] for entry in whole) == "So be it."
    events = events_of(call(PATH, {**body, "stream": True}))
    assert logprobs_of(events[-1]["response"]) == [said, whole]
    told = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [entry for event in told for entry in event["logprobs"]] == whole
