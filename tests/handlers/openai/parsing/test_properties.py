"""However a text is cut into pieces, its message is the same; and nothing of it is lost or made up."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paged_backend.handlers.openai.parsing.events import CallArguments, CallBegin, CallBroken, CallEnd, Content
from paged_backend.handlers.openai.parsing.json_value import JsonValue

from .conftest import calls_of, events_of, message_of, parser

STYLES = ("hermes", "llama3_json", "mistral", "required", "named")
MARKERS = (
    *("<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<think>", "</think>"),
    *('{"name": "f", "arguments": ', '{"a": 1}', '"}}', '"name"', '"parameters"', ": ", "[", "]", "{", "}", ",", ";"),
    *('"', "\\", "\n", " ", "null", "1e5", "f", "\\u00e4", "é", "<", "</"),
)
NAMES = st.sampled_from(["f", "get_weather", "a.b-c"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(), VALUES, max_size=4)


@st.composite
def calls(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Names and JSON texts of arguments."""
    indent = draw(st.sampled_from([None, 1]))
    ascii_only = draw(st.booleans())
    made = draw(st.lists(st.tuples(NAMES, OBJECTS), min_size=1, max_size=3))
    return [(name, json.dumps(value, indent=indent, ensure_ascii=ascii_only)) for name, value in made]


def written(style: str, made: list[tuple[str, str]]) -> str:
    """Calls as a model of that style writes them."""
    key = "parameters" if style in ("llama3_json", "required") else "arguments"
    objects = [f'{{"name": {json.dumps(name)}, "{key}": {arguments}}}' for name, arguments in made]
    if style == "hermes":
        return "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in objects)
    if style == "llama3_json":
        return "; ".join(objects)
    prefix = "[TOOL_CALLS]" if style == "mistral" else ""
    return f"{prefix}[{', '.join(objects)}]"


def cut(text: str, places: list[int]) -> list[str]:
    """A text in pieces."""
    ends = sorted({place % (len(text) + 1) for place in places} | {len(text)})
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@settings(max_examples=100)
@given(
    st.sampled_from(STYLES), st.lists(st.sampled_from(MARKERS), max_size=14), st.lists(st.integers(0)), st.booleans()
)
@pytest.mark.parametrize("reasoning", [None, "qwen3", "deepseek_r1"])
def test_cuts_change_nothing(reasoning, style, parts, places, single):
    text = "".join(parts)
    options = {"is_open": True if reasoning == "deepseek_r1" else None, "single_call": single}
    whole = events_of([text], style, reasoning, **options)
    assert events_of(cut(text, places), style, reasoning, **options) == whole
    assert events_of(text, style, reasoning, **options) == whole


@settings(max_examples=60)
@given(st.sampled_from(["hermes", "llama3_json", "mistral", "required"]), calls(), st.lists(st.integers(0)))
def test_calls_come_back_as_they_were_written(style, made, places):
    text = written(style, made)
    found = events_of(cut(text, places), style)
    assert [event for event in found if isinstance(event, (Content, CallBroken))] == []
    assert [event.name for event in found if isinstance(event, CallBegin)] == [name for name, _ in made]
    arguments = {event.index: event.text for event in found if isinstance(event, CallArguments)}
    assert list(arguments.values()) == [text for _, text in made]
    assert sum(isinstance(event, CallEnd) for event in found) == len(made)


@settings(max_examples=60)
@given(st.sampled_from(["hermes", "mistral", "llama3_json"]), st.text(), calls())
def test_content_before_calls(style, content, made):
    prefix = "<|python_tag|>" if style == "llama3_json" else ""
    message = message_of(content + prefix + written(style, made), style)
    if "{" not in content and "<" not in content and "[" not in content:
        assert message.content == (content.rstrip() or None)
        assert calls_of(message) == made


@given(st.sampled_from(STYLES), st.text())
def test_text_without_a_marker_is_content(style, text):
    if not set("<[{").isdisjoint(text) or (style in ("required", "named") and not text.strip()):
        return
    assert (message_of(text, style).content or "") == text


@settings(max_examples=60)
@given(calls(), st.integers(0))
def test_what_is_held_back_is_little(made, place):
    """White space, and what may be a marker; of a call, all until its arguments begin, and then nothing."""
    head, text = "Hello there.", "Hello there." + written("hermes", made)
    read = 1 + place % len(text)
    reader = parser("hermes")
    events = [event for character in text[:read] for event in reader.push(character)]
    content = "".join(event.text for event in events if isinstance(event, Content))
    assert content == head[:read].rstrip()
    name, arguments = made[0]
    begin = text.index('"arguments": ') + len('"arguments": ')
    if begin < read <= begin + len(arguments):
        assert [event.name for event in events if isinstance(event, CallBegin)] == [name]
        assert "".join(event.text for event in events if isinstance(event, CallArguments)) == text[begin:read]


@settings(max_examples=150)
@given(st.lists(st.sampled_from([*MARKERS, "true", "-", "0", ".", "E"]), max_size=8), VALUES, st.booleans())
def test_json_values_are_those_of_the_standard_library(parts, value, is_valid):
    text = json.dumps(value) if is_valid else "".join(parts)
    ours = JsonValue()
    end = ours.feed(text + "\n")  # a number is done at the character after it
    try:
        json.loads(text)
        valid = True
    except ValueError:
        valid = False
    assert (ours.status == "done" and not text[end:].strip()) == valid


def test_depth_costs_nothing():
    text = "[" * 100_000 + "]" * 100_000
    value = JsonValue()
    assert value.feed(text) == len(text) and value.status == "done"
