"""Tools, calls that come back, and templates. "second" is a model whose calls this server can read."""

from __future__ import annotations

from typing import Any

from tests.conformance.case import CHAT, accepted, refused, wrong_types
from tests.conformance.checks import same_as

_ON_CHAT = (CHAT,)
_ADD = {
    "name": "add",
    "description": "Adds.",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["a"],
        "additionalProperties": False,
    },
}
TOOL = {"type": "function", "function": _ADD}
SAID = {"role": "user", "content": "Add."}
_CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
_CALLED = [SAID, {"role": "assistant", "content": None, "tool_calls": [_CALL]}]


def _with(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {**_ADD, **fields}}


def _calling(**fields: Any) -> list[dict[str, Any]]:
    return [SAID, {"role": "assistant", "tool_calls": [{**_CALL, "function": {**_CALL["function"], **fields}}]}]


_TOOLS = [
    *accepted("tools", [], same_as(tools=None), on=_ON_CHAT),
    *accepted("tools", [TOOL], tool_choice="none", on=_ON_CHAT),
    *accepted("tools", [TOOL], model="second", on=_ON_CHAT),
    *accepted("tools", [TOOL], same_as(tool_choice=None), model="second", tool_choice="auto", on=_ON_CHAT),
    *accepted("tools", [_with(strict=True)], model="second", n=2, on=_ON_CHAT),
    *accepted("parallel_tool_calls", False, model="second", tools=[TOOL], on=_ON_CHAT),
    *accepted("tool_choice", "none", same_as(tool_choice=None), on=_ON_CHAT),
    *refused("tool_choice", "auto", on=_ON_CHAT),
    *refused("tool_choice", "required", on=_ON_CHAT),
    *refused("tool_choice", "sometimes", tools=[TOOL], on=_ON_CHAT),
    *refused(
        "tool_choice",
        {"type": "function", "function": {"name": "subtract"}},
        "tool_choice.function.name",
        tools=[TOOL],
        on=_ON_CHAT,
    ),
    *refused("tool_choice", {"type": "function"}, "body.tool_choice", tools=[TOOL], on=_ON_CHAT),
    *refused("tools", [{"type": "web_search"}], "tools.0.type", on=_ON_CHAT),
    *refused("tools", [_with(name="")], "tools.0.function.name", on=_ON_CHAT),
    *refused("tools", [_with(name="a b")], "tools.0.function.name", on=_ON_CHAT),
    *refused("tools", [_with(nonsense=1)], "tools.0.function.nonsense", on=_ON_CHAT),
    *refused("tools", [TOOL, TOOL], "tools.1.function.name", on=_ON_CHAT),
    *wrong_types("tools", 5, "add", on=_ON_CHAT),
    *wrong_types("tools", ["add"], param="body.tools.0", on=_ON_CHAT),
    *wrong_types("tools", [_with(parameters=5)], param="body.tools.0.function.parameters", on=_ON_CHAT),
    *wrong_types("tools", [_with(description=5)], param="body.tools.0.function.description", on=_ON_CHAT),
]

_CALLS = [
    *accepted("messages", [*_CALLED, {"role": "tool", "tool_call_id": "c1", "content": "2"}], on=_ON_CHAT),
    *accepted(
        "messages", [*_calling(arguments=""), {"role": "tool", "tool_call_id": "c1", "content": "2"}], on=_ON_CHAT
    ),
    *refused("messages", _calling(arguments="{"), "messages.1.tool_calls.0.function.arguments", on=_ON_CHAT),
    *refused("messages", _calling(arguments="[1]"), "messages.1.tool_calls.0.function.arguments", on=_ON_CHAT),
    *refused("messages", [{**SAID, "tool_calls": [_CALL]}], "messages.0.tool_calls", on=_ON_CHAT),
    *wrong_types("messages", _calling(name=5), param="body.messages.1.tool_calls.0.function.name", on=_ON_CHAT),
]

_TEMPLATES = [
    *accepted("reasoning_effort", "low", on=_ON_CHAT),
    *accepted("include_reasoning", True, same_as(include_reasoning=None), on=_ON_CHAT),
    *accepted("include_reasoning", False, same_as(include_reasoning=None), on=_ON_CHAT),
    *accepted("documents", [{"title": "A", "text": "B"}], same_as(documents=None), on=_ON_CHAT),
    *accepted("echo", False, same_as(echo=None), on=_ON_CHAT),
    *refused("chat_template", "{{ messages }}", on=_ON_CHAT),
    *wrong_types("include_reasoning", "no", on=_ON_CHAT),
    *wrong_types("reasoning_effort", 5, on=_ON_CHAT),
]

ROWS = [*_TOOLS, *_CALLS, *_TEMPLATES]
