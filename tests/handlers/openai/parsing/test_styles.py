"""Golden texts of each style: what a model writes, and the message that it means."""

from __future__ import annotations

import pytest

from paged_backend.handlers.openai.parsing.events import CallArguments, CallBegin, CallBroken, CallEnd, Content

from .conftest import calls_of, events_of, message_of

HERMES = '<tool_call>\n{"name": "f", "arguments": {"a": [1, {"b": "}</tool_call>"}]}}\n</tool_call>'
ARGUMENTS = '{"a": [1, {"b": "}</tool_call>"}]}'


@pytest.mark.parametrize(
    ("style", "text", "content", "calls"),
    [
        # Hermes and Qwen
        ("hermes", "no call at all\n", "no call at all\n", []),
        ("hermes", HERMES, None, [("f", ARGUMENTS)]),
        ("hermes", f"Let me see.\n\n{HERMES}\n{HERMES}\n", "Let me see.", [("f", ARGUMENTS)] * 2),
        ("hermes", f"{HERMES} and then\n", " and then", [("f", ARGUMENTS)]),
        ("hermes", '<tool_call>{"arguments": {}, "x": [null, -1.5e3, true], "name": "g"}', None, [("g", "{}")]),
        ("hermes", '<tool_call>{"name": "g", "arguments": null}</tool_call>', None, [("g", "{}")]),
        ("hermes", '<tool_call>{"name": "g", "arguments": "{\\"a\\": 1}"}</tool_call>', None, [("g", '{"a": 1}')]),
        ("hermes", '<tool_call>{"name": "\\u0067", "parameters": {}}}</tool_call>', "}</tool_call>", [("g", "{}")]),
        # ... and what is none
        ("hermes", "a <tool_call> b", "a <tool_call> b", []),
        ("hermes", "a <tool_", "a <tool_", []),
        ("hermes", '<tool_call>{"name": "f"}</tool_call>', '<tool_call>{"name": "f"}</tool_call>', []),
        ("hermes", '<tool_call>{"name": "f", "arguments": 3}', '<tool_call>{"name": "f", "arguments": 3}', []),
        ("hermes", '<tool_call>{"name": "f", "arguments": "3"}', '<tool_call>{"name": "f", "arguments": "3"}', []),
        ("hermes", '<tool_call>{"name": 1, "arguments": {}}', '<tool_call>{"name": 1, "arguments": {}}', []),
        ("hermes", '<tool_call>{"name": "", "arguments": {}}', '<tool_call>{"name": "", "arguments": {}}', []),
        (
            "hermes",
            '<tool_call>{"name": "f", "arguments": {"a": 1',
            '<tool_call>{"name": "f", "arguments": {"a": 1',
            [],
        ),
        ("hermes", "<tool_call>{'name': 'f'}</tool_call>", "<tool_call>{'name': 'f'}</tool_call>", []),
        ("hermes", f"<tool_call>{HERMES}", "<tool_call>", [("f", ARGUMENTS)]),
        (
            "hermes",
            '<tool_call>{"name": "f", "arguments": {a: 1}}</tool_call>\n' + HERMES,
            '<tool_call>{"name": "f", "arguments": {a: 1}}</tool_call>',
            [("f", ARGUMENTS)],
        ),
        # Llama 3's JSON
        ("llama3_json", "Hello {", "Hello {", []),
        ("llama3_json", '{"name": "f", "parameters": {"x": "1"}}', None, [("f", '{"x": "1"}')]),
        ("llama3_json", ' {"type": "function", "name": "f", "parameters": {}}', None, [("f", "{}")]),
        ("llama3_json", '<|python_tag|>{"name": "f", "parameters": {}}', None, [("f", "{}")]),
        (
            "llama3_json",
            '{"name": "f", "parameters": {}}; {"name": "g", "arguments": {"y": 2}}\n',
            None,
            [("f", "{}"), ("g", '{"y": 2}')],
        ),
        ("llama3_json", 'Yes: <|python_tag|>{"name": "f", "parameters": {}}', "Yes:", [("f", "{}")]),
        ("llama3_json", '{"name": "f", "parameters": {}} done', " done", [("f", "{}")]),
        ("llama3_json", '{"answer": 3}', '{"answer": 3}', []),
        ("llama3_json", "<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
        ("llama3_json", '{"name": "f", "parameters": {"x', '{"name": "f", "parameters": {"x', []),
        ("llama3_json", "  ", "  ", []),
        # Mistral
        ("mistral", "Hello [TOOL_", "Hello [TOOL_", []),
        ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}}]', None, [("f", '{"x": 1}')]),
        (
            "mistral",
            'Look: [TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"y": "]"}}]',
            "Look:",
            [("f", "{}"), ("g", '{"y": "]"}')],
        ),
        ("mistral", '[TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]g{"y": 2}', None, [("f", '{"x": 1}'), ("g", '{"y": 2}')]),
        ("mistral", '[TOOL_CALLS]{"name": "f", "arguments": {}}', None, [("f", "{}")]),
        ("mistral", "[TOOL_CALLS][]", "[TOOL_CALLS][]", []),
        ("mistral", "[TOOL_CALLS]some words", "[TOOL_CALLS]some words", []),
        ("mistral", "[TOOL_CALLS]f[ARGS]", "[TOOL_CALLS]f[ARGS]", []),
        ("mistral", '[TOOL_CALLS]f{"x": 1', '[TOOL_CALLS]f{"x": 1', []),
        ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {}}, 3]', ", 3]", [("f", "{}")]),
        # What a grammar has made
        ("required", '[{"name": "f", "parameters": {}}]', None, [("f", "{}")]),
        ("required", '[{"name": "f", "parameters": {"x": 1}}, {"name": "g", "para', None, [("f", '{"x": 1}')]),
        ("required", '[{"name": "f", "parameters": {"x', None, [("f", '{"x')]),
        ("required", "hello", "hello", []),
        ("named", '\n{"x": 1}\n', None, [("f", '{"x": 1}')]),
        ("named", '{"x', None, [("f", '{"x')]),
        ("named", "hello", "hello", []),
    ],
)
def test_whole_messages(style, text, content, calls):
    message = message_of(text, style)
    assert message.content == content
    assert calls_of(message) == calls
    assert message.reasoning is None


def test_a_models_own_call_ids():
    (call,) = message_of('[TOOL_CALLS]f[CALL_ID]abc123def[ARGS]{"x": 1}', "mistral").tool_calls
    assert (call.id, call.name, call.arguments) == ("abc123def", "f", '{"x": 1}')


def test_events_of_a_stream():
    pieces = ["On", "e.\n<tool", '_call>{"name": "f", "argum', 'ents": {"a"', ": 1}", "}", "</tool_call>"]
    reader_events = events_of(pieces, "hermes")
    assert reader_events == [
        Content("One."),
        CallBegin(0, "call-0", "f"),
        CallArguments(0, '{"a": 1}'),
        CallEnd(0),
    ]


def test_a_call_that_breaks_after_its_beginning():
    text = '<tool_call>{"name": "f", "arguments": {"a": oops}}</tool_call> bye'
    raw, rest = text.split(" bye")[0], " bye"
    assert events_of([text], "hermes") == [
        CallBegin(0, "call-0", "f"),
        CallArguments(0, '{"a": oops}}'),
        CallBroken(0, raw),
        Content(rest),
    ]


@pytest.mark.parametrize(
    ("style", "is_open", "text", "reasoning", "content"),
    [
        ("qwen3", None, "<think>\nhm\n</think>\n\nYes", "\nhm\n", "\n\nYes"),
        ("qwen3", None, "\n<think>hm</think>Yes", "hm", "Yes"),
        ("qwen3", None, "Yes <think>no</think>", None, "Yes <think>no</think>"),
        ("qwen3", None, "<thin", None, "<thin"),
        ("qwen3", None, "<think>never ends </thi", "never ends </thi", None),
        ("qwen3", True, "hm</think>Yes", "hm", "Yes"),
        ("qwen3", True, "<think>hm</think>Yes", "hm", "Yes"),
        ("qwen3", False, "<think>hm</think>Yes", None, "<think>hm</think>Yes"),
        ("deepseek_r1", True, "hm", "hm", None),
        ("mistral", None, "[THINK]hm[/THINK]Yes", "hm", "Yes"),
    ],
)
def test_reasoning(style, is_open, text, reasoning, content):
    message = message_of(text, None, style, is_open=is_open)
    assert (message.reasoning, message.content) == (reasoning, content)


def test_calls_are_looked_for_after_the_reasoning_only():
    message = message_of(f"<think>{HERMES}</think>\n{HERMES}", "hermes", "qwen3")
    assert message.reasoning == HERMES and message.content is None
    assert calls_of(message) == [("f", ARGUMENTS)]


BROKEN = '<tool_call>{"name": "f", "arguments": {a: 1}}</tool_call>'
CUT = '<tool_call>{"name": "f", "arguments": {"a": 1'


@pytest.mark.parametrize(
    ("text", "content", "names"),
    [
        (f"a{HERMES}{HERMES}b", "ab", ["f"]),
        (f"{HERMES}\n{BROKEN}", f"\n{BROKEN}", ["f"]),
        (f"{HERMES}{CUT}", CUT, ["f"]),
        (f"{HERMES}{BROKEN}{HERMES}{BROKEN}", BROKEN * 2, ["f"]),
        (f"{BROKEN}{HERMES}{HERMES}", BROKEN, ["f"]),
        (BROKEN, BROKEN, []),
    ],
)
def test_a_single_call(text, content, names):
    """Of several calls the first that is one stays; what is none is text, wherever it stands."""
    message = message_of(text, "hermes", single_call=True)
    assert (message.content, [call.name for call in message.tool_calls]) == (content, names)
    told = events_of(text, "hermes", single_call=True)
    assert sum(isinstance(event, CallEnd) for event in told) == len(names)


def test_a_call_knows_whether_it_is_complete():
    message = message_of('[{"name": "f", "parameters": {}}, {"name": "g", "parameters": {"a"', "required")
    assert [(call.name, call.complete) for call in message.tool_calls] == [("f", True), ("g", False)]
