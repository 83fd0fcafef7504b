"""Outputs that must have a form: JSON, a schema, an expression, a choice, a grammar; and calls that must be made."""

from __future__ import annotations

from typing import Any

from tests.conformance.case import CHAT, MESSAGES, RESPONSES, accepted, refused, streamed, whole, wrong_types
from tests.conformance.checks import calls, is_json, matches, same_as
from tests.conformance.tool_rows import SAID, TOOL

_ON_CHAT, _ON_RESPONSES, _ON_MESSAGES = (CHAT,), (RESPONSES,), (MESSAGES,)
_SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Ann", "Bob"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
_FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": _SCHEMA, "strict": True}}
_DRAWN = {"n": 3, "temperature": 1.5, "seed": 5, "max_tokens": 60}
_PERSON = {"name": ("Ann", "Bob"), "age": range(100)}
_PATTERN = "[0-9]{3}-[a-z]{2}"
_AB = "(a|b)+"


def _only(**constraint: Any) -> dict[str, Any]:
    return {"structured_outputs": constraint}


_FORMATS = [
    *accepted("response_format", {"type": "text"}, same_as(response_format=None)),
    *accepted("response_format", {"type": "json_object"}, is_json(None), max_tokens=30),
    *accepted("response_format", _FORMAT, is_json(_PERSON), max_tokens=60),
    *accepted("response_format", _FORMAT, is_json(_PERSON), **_DRAWN),
    *accepted("response_format", _FORMAT, max_tokens=3),
    *refused("response_format", {"type": "xml"}),
    *refused("response_format", {}),
    *refused("response_format", {"type": "json_schema"}),
    *refused("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}),
    *refused("response_format", {"type": "json_object", "json_schema": {}}, "response_format.json_schema"),
    *refused("response_format", _FORMAT, "structured_outputs", structured_outputs={"regex": "a"}),
    *wrong_types("response_format", 5, "json_object"),
]

_CONSTRAINTS = [
    *accepted("structured_outputs", {"json": _SCHEMA}, is_json(_PERSON), max_tokens=60),
    *accepted("structured_outputs", {"json": _SCHEMA}, is_json(_PERSON), **_DRAWN),
    *accepted("structured_outputs", {"json_object": True}, is_json(None), max_tokens=30),
    *accepted("structured_outputs", {"regex": _PATTERN}, matches(_PATTERN), max_tokens=20),
    *accepted("structured_outputs", {"regex": _PATTERN}, matches(_PATTERN), **_DRAWN),
    *accepted("structured_outputs", {"regex": _PATTERN}, matches(_PATTERN), max_tokens=20, stream_interval=3),
    *accepted("structured_outputs", {"choice": ["red", "green"]}, matches("red|green"), max_tokens=20),
    *accepted("structured_outputs", {"choice": ["only this"]}, matches("only this"), max_tokens=20),
    *accepted("structured_outputs", {"grammar": 'start: "yes" | "no"'}, matches("yes|no"), max_tokens=20),
    *accepted("structured_outputs", {"grammar": 'root ::= "yes" | "no"'}, matches("yes|no"), max_tokens=20),
    *accepted("structured_outputs", {"regex": _AB}, matches(_AB), max_tokens=5),
    *accepted("structured_outputs", {"regex": _PATTERN}, matches(_PATTERN), max_tokens=20, return_token_ids=True),
    *refused("structured_outputs", {}),
    *refused("structured_outputs", {"regex": "a", "choice": ["b"]}),
    *refused("structured_outputs", {"regx": "a"}, "structured_outputs.regx"),
    *refused("structured_outputs", {"regex": "["}),
    *refused("structured_outputs", {"regex": 5}),
    *refused("structured_outputs", {"choice": []}),
    *refused("structured_outputs", {"choice": [5]}),
    *refused("structured_outputs", {"grammar": "x"}),
    *refused("structured_outputs", {"json": {"type": "nonsense"}}),
    *refused("structured_outputs", {"json": "{"}),
    *whole(refused("use_beam_search", True, n=2, **_only(regex="[ab]{2}"))),
    *wrong_types("structured_outputs", 5, "json"),
]

_ELSEWHERE = [
    *accepted(
        "text",
        {"format": {"type": "json_schema", "name": "person", "schema": _SCHEMA}},
        is_json(_PERSON),
        max_output_tokens=60,
        on=_ON_RESPONSES,
    ),
    *accepted("text", {"format": {"type": "json_object"}}, max_output_tokens=20, on=_ON_RESPONSES),
    *wrong_types("text", 5, on=_ON_RESPONSES),
    *accepted(
        "output_config",
        {"format": {"type": "json_schema", "schema": _SCHEMA}},
        is_json(_PERSON),
        max_tokens=60,
        on=_ON_MESSAGES,
    ),
    *wrong_types("output_config", 5, on=_ON_MESSAGES),
]

_ADD = {"type": "function", "function": {"name": "add"}}
_CALLS = [
    *accepted(
        "tool_choice", "required", calls("add"), tools=[TOOL], parallel_tool_calls=False, max_tokens=60, on=_ON_CHAT
    ),
    *accepted("tool_choice", _ADD, calls("add"), tools=[TOOL], max_tokens=60, on=_ON_CHAT),
    *accepted("tool_choice", _ADD, calls("add"), tools=[TOOL], max_tokens=60, messages=[SAID], n=2, on=_ON_CHAT),
    *streamed(accepted("tool_choice", _ADD, calls("add"), tools=[TOOL], max_tokens=60, logprobs=True, on=_ON_CHAT)),
]

ROWS = [*_FORMATS, *_CONSTRAINTS, *_ELSEWHERE, *_CALLS]
