"""Fields inside of blocks, items, parts and tools: those that change nothing, and those that are not served."""

from __future__ import annotations

from typing import Any

from tests.conformance.case import CHAT, COUNT, MESSAGES, RESPONSES, Case, accepted, refused, request, whole
from tests.conformance.checks import same_as

_ON_CHAT, _ON_RESPONSES, _ON_MESSAGES = (CHAT,), (RESPONSES,), (MESSAGES,)
_TELL = "Tell me a short story."
_HI = {"role": "user", "content": "Hi."}
_HINT = {"cache_control": {"type": "ephemeral", "ttl": "5m"}}
_LABELS = {"id": "x_1", "status": "completed"}
_TEXT = {"type": "text", "text": _TELL}
_USE = {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}}
_RESULT = {"type": "tool_result", "tool_use_id": "1", "content": "sunny"}
_CALL = {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"a": 1}'}
_OUTPUT = {"type": "function_call_output", "call_id": "1", "output": "sunny"}
_THOUGHT = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}
_PART = {"type": "output_text", "text": "Hello."}
_CALLED = {"name": "f", "arguments": '{"a": 1}'}
_MADE = {"id": "1", "type": "function", "function": _CALLED}
_SAID = {"role": "assistant", "content": "Hello."}
_FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
_TOOL = {"name": "f", "input_schema": {"type": "object", "properties": {}}}


def _turns(role: str, block: dict[str, Any]) -> list[dict[str, Any]]:
    """A conversation in which this block is, and after which the model speaks."""
    return [{"role": role, "content": [block]}, {"role": "user", "content": _TELL}]


def _items(item: dict[str, Any]) -> list[dict[str, Any]]:
    return [_HI, item, {"role": "user", "content": _TELL}]


def _hints() -> list[Case]:
    """An object with what changes nothing answers as the object without it."""
    blocks: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("user", _TEXT, {**_HINT, "citations": [], "parsed_output": {"a": 1}, "unknown": None}),
        ("user", _RESULT, {**_HINT, "is_error": False, "toolset_name": None}),
        ("assistant", _USE, {**_HINT, "caller": {"type": "direct"}, "toolset_name": None}),
        ("assistant", {"type": "thinking", "thinking": "hm"}, {"signature": ""}),
        ("assistant", {"type": "redacted_thinking"}, {"data": "x"}),
        ("system", {"type": "text", "text": "Be brief."}, _HINT),
    ]
    items: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"role": "assistant", "content": "Hello."}, {**_LABELS, "type": "message", "phase": "final_answer"}),
        (_CALL, {**_LABELS, "caller": {"type": "direct"}, "parsed_arguments": {"a": 1}, "namespace": None}),
        (_OUTPUT, {**_LABELS, "created_by": None}),
        (_THOUGHT, {**_LABELS, "encrypted_content": None, "content": []}),
    ]
    cases = []
    for role, block, more in blocks:
        plain, marked = _turns(role, block), _turns(role, {**block, **more})
        cases += accepted("messages", marked, same_as(messages=plain), on=_ON_MESSAGES)
    for item, more in items:
        plain, marked = _items(item), _items({**item, **more})
        cases += accepted("input", marked, same_as(input=plain), on=_ON_RESPONSES)
    part = {**_PART, "annotations": [], "logprobs": [], "parsed": None}
    said = [_items({"role": "assistant", "content": [one]}) for one in (_PART, part)]
    cases += accepted("input", said[1], same_as(input=said[0]), on=_ON_RESPONSES)
    return cases


def _chats() -> list[Case]:
    """The chat's messages, parts and calls: hints, what a reply leaves empty, and what is not served."""
    made = {**_MADE, "index": 0, "function": {**_CALLED, "parsed_arguments": {"a": 1}, "unknown": None}}
    empty = {"refusal": None, "audio": None, "function_call": None, "tool_calls": [], "annotations": [], "images": []}
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"role": "user", "content": [_TEXT]}, {"content": [{**_TEXT, **_HINT, "prompt_cache_breakpoint": {}}]}),
        ({"role": "system", "content": "Be brief."}, {**_HINT, "name": None, "reasoning": None}),
        (_SAID, {**empty, "parsed": {"a": 1}, "reasoning": None, "unknown": None}),
        (_SAID, {"annotations": [{"type": "url_citation"}], "provider_specific_fields": {"refusal": None}}),
        (_SAID, {"content": [{"type": "refusal", "refusal": "Hello."}], "thinking_blocks": []}),
        ({"role": "assistant", "tool_calls": [_MADE]}, {"content": None, "tool_calls": [made]}),
        ({"role": "tool", "tool_call_id": "1", "content": "sunny"}, {"name": None, "tool_calls": None}),
    ]
    cases = []
    for plain, more in pairs:
        marked = _items({**plain, **more})
        cases += accepted("messages", marked, same_as(messages=_items(plain)), on=_ON_CHAT)
    for wrong, place in (
        ({**_HI, "foo": 1}, "foo"),
        ({**_HI, "reasoning": "hm"}, "reasoning"),
        ({**_HI, "tool_call_id": "1"}, "tool_call_id"),
        ({**_SAID, "audio": {"id": "a"}}, "audio"),
        ({**_SAID, "function_call": _CALLED}, "function_call"),
        ({"role": "assistant", "refusal": "No."}, "refusal"),
        ({"role": "user", "content": [{**_TEXT, "foo": 1}]}, "content.0.foo"),
        ({"role": "user", "content": [{"type": "refusal", "refusal": "No."}]}, "content.0.type"),
        ({"role": "assistant", "tool_calls": [{**_MADE, "foo": 1}]}, "tool_calls.0.foo"),
        (
            {"role": "assistant", "tool_calls": [{**_MADE, "function": {**_CALLED, "foo": 1}}]},
            "tool_calls.0.function.foo",
        ),
    ):
        cases += refused("messages", _items(wrong), f"messages.1.{place}", on=_ON_CHAT)
    for wrong, place in (({"cache_contrl": {}}, "cache_contrl"), ({"type": "custom"}, "type")):
        tool = {"type": "function", "function": {"name": "f"}}
        cases += refused("tools", [{**tool, **wrong}], f"tools.0.{place}", tool_choice="none", on=_ON_CHAT)
    marked_tool = {"type": "function", "function": {"name": "f", "unknown": None}, **_HINT}
    cases += accepted("tools", [marked_tool], tool_choice="none", on=_ON_CHAT)
    schema = {"name": "x", "schema": {"type": "object"}, "foo": 1}
    cases += refused(
        "response_format", {"type": "json_schema", "json_schema": schema}, "response_format.json_schema.foo"
    )
    cases += refused("response_format", {"type": "json_object", "foo": 1}, "response_format.foo")
    return cases


def _fields_of_tools() -> list[Case]:
    direct = {"defer_loading": False, "allowed_callers": ["direct"]}
    anthropics = {**_HINT, "type": "custom", "strict": True, "eager_input_streaming": True, **direct}
    openais = {"strict": True, "description": None, **direct}
    choices: dict[str, Any] = {MESSAGES: {"type": "none"}, RESPONSES: "none"}
    cases = []
    for path, tool, more in ((MESSAGES, _TOOL, anthropics), (RESPONSES, _FUNCTION, openais)):
        rest = {"on": (path,), "tool_choice": choices[path]}
        cases += accepted("tools", [{**tool, **more}], same_as(tools=[tool]), **rest)
        for name, value in (("defer_loading", True), ("allowed_callers", ["x"]), ("foo", 1)):
            cases += refused("tools", [{**tool, name: value}], f"tools.0.{name}", **rest)
    cases += whole(refused("tools", [{**_TOOL, "input_examples": [1]}], on=_ON_MESSAGES))
    described = {**_FUNCTION, "output_schema": {"a": 1}}
    cases += whole(refused("tools", [described], "tools.0.output_schema", on=_ON_RESPONSES))
    return cases


def _unserved() -> list[Case]:
    """An object with what is not served is refused, and its place is named."""
    cases = []
    for role, block in (("user", _TEXT), ("user", _RESULT), ("assistant", _USE), ("system", _TEXT)):
        cases += refused("messages", _turns(role, {**block, "foo": 1}), "messages.0.content.0.foo", on=_ON_MESSAGES)
    cases += refused("messages", [{**_HI, "name": "me"}], "messages.0.name", on=_ON_MESSAGES)
    cases += refused("system", [{**_TEXT, "foo": 1}], "system.0.foo", on=_ON_MESSAGES)
    cases += whole(refused("messages", _turns("user", {**_RESULT, "is_error": "no"}), on=_ON_MESSAGES))
    for item in (_HI, _CALL, _OUTPUT, _THOUGHT):
        cases += refused("input", _items({**item, "foo": 1}), "input.1.foo", on=_ON_RESPONSES)
    said = {"role": "assistant", "content": [{**_PART, "foo": 1}]}
    cases += refused("input", _items(said), "input.1.content.0.foo", on=_ON_RESPONSES)
    counted = request(COUNT, messages=_turns("user", {**_TEXT, "foo": 1}))
    cases.append(Case(f"{COUNT} of a field that nobody knows", COUNT, counted, status=400))
    return cases


_CONFIGS = [
    *accepted("text", {"verbosity": "medium"}, same_as(text=None), on=_ON_RESPONSES),
    *accepted("reasoning", {"summary": "auto"}, same_as(reasoning=None), on=_ON_RESPONSES),
    *accepted("reasoning", {"context": "auto", "mode": "standard"}, same_as(reasoning=None), on=_ON_RESPONSES),
    *refused("text", {"verbosity": "low"}, "text.verbosity", on=_ON_RESPONSES),
    *refused("text", {"format": {"type": "text", "schema": {}}}, "text.format.schema", on=_ON_RESPONSES),
    *refused("reasoning", {"mode": "pro"}, "reasoning.mode", on=_ON_RESPONSES),
    *accepted("thinking", {"type": "adaptive", "display": "omitted"}, on=_ON_MESSAGES),
    *accepted("thinking", {"type": "enabled"}, same_as(thinking={"type": "adaptive"}), on=_ON_MESSAGES),
    # The model marks no reasoning, so that nobody could hold it to a budget.
    *refused("thinking", {"type": "enabled", "budget_tokens": 1024}, on=_ON_MESSAGES),
    *refused("thinking", {"type": "adaptive", "budget_tokens": 1024}, on=_ON_MESSAGES),
    *refused("thinking", {"type": "between_tools"}, on=_ON_MESSAGES),
    *refused("speed", "fast", on=_ON_MESSAGES),
    *accepted("speed", "standard", same_as(speed=None), on=_ON_MESSAGES),
    *accepted("return_receipt", True, same_as(return_receipt=None), on=(RESPONSES, MESSAGES)),
    *accepted(
        "messages",
        _turns("user", {**_RESULT, "is_error": True}),
        same_as(messages=_turns("user", {**_RESULT, "content": "Error: sunny"})),
        on=_ON_MESSAGES,
    ),
]

ROWS = [*_hints(), *_chats(), *_fields_of_tools(), *_unserved(), *_CONFIGS]
