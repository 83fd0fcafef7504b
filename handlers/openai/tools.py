"""A request's tools: checked, and what its `tool_choice` asks of the model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paged_backend.errors import InvalidRequestError
from paged_backend.handlers.openai.items import read_objects, read_text, unknown_kind, wrong_type
from paged_backend.handlers.openai.protocol.chat_objects import (
    CHOICE,
    CHOICES,
    CHOSEN_FUNCTION,
    FUNCTION,
    FUNCTION_NAME,
    TOOL,
)

_NAME = re.compile(FUNCTION_NAME)
_SHOWN_FIELDS = ("name", "description", "parameters")
_MAX_DEPTH = 64
"""Levels of a tool's parameters: more than any schema has, and less than what recursion over them could not take."""


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of one request, and whether they are called.

    Attributes:
        tools: as the chat template gets them; empty where the request has none.
        choice: "none", "auto", "required", or "named".
        name: the function that is to be called, for "named".
    """

    tools: tuple[Mapping[str, Any], ...] = ()
    choice: str = "none"
    name: str | None = None

    @property
    def is_forced(self) -> bool:
        """Whether the answer has to be a call."""
        return self.choice in ("required", "named")

    def schema(self, *, single: bool) -> dict[str, Any]:
        """The JSON schema of a forced answer: the named function's arguments, or an array of calls.

        Args:
            single: one call at most.
        """
        assert self.is_forced
        if self.choice == "named":
            return _parameters(next(tool for tool in self.tools if tool["function"]["name"] == self.name))
        definitions: dict[str, Any] = {}
        calls = [_call_schema(tool, definitions) for tool in self.tools]
        schema: dict[str, Any] = {
            "type": "array",
            "minItems": 1,
            "items": calls[0] if len(calls) == 1 else {"anyOf": calls},
        }
        if single:
            schema["maxItems"] = 1
        if definitions:
            schema["$defs"] = definitions
        return schema


def parse_tools(tools: Any, tool_choice: Any) -> ToolUse:
    """Checks a request's `tools` and `tool_choice`.

    Raises:
        InvalidRequestError: `param` names the place, such as "tools.0.function.name".
    """
    if not tools and tools in (None, []):
        if tool_choice in (None, "none"):
            return ToolUse()
        raise InvalidRequestError("tool_choice needs tools: give them, or leave it out.", param="tool_choice")
    parsed = tuple(_parse_tool(tool, place) for place, tool in read_objects(tools, "tools"))
    names = [tool["function"]["name"] for tool in parsed]
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            raise InvalidRequestError(
                f"tools.{index}.function.name: there are two functions {name!r}: give each a name of its own.",
                param=f"tools.{index}.function.name",
            )
        seen.add(name)
    if tool_choice is None:
        return ToolUse(parsed, "auto")
    if isinstance(tool_choice, str):
        if tool_choice not in CHOICES:
            raise InvalidRequestError(
                f'tool_choice must be one of {", ".join(CHOICES)}, or {{"type": "function", "function": '
                f'{{"name": "..."}}}}, got {tool_choice!r}.',
                param="tool_choice",
            )
        return ToolUse(parsed, tool_choice)
    return ToolUse(parsed, "named", _named_function(tool_choice, names))


def _named_function(tool_choice: Any, names: Sequence[str]) -> str:
    if not isinstance(tool_choice, dict):
        raise wrong_type("tool_choice", f"one of {', '.join(CHOICES)}, or an object that names a function")
    kind = tool_choice.get("type")
    if isinstance(kind, str) and kind != "function":
        raise InvalidRequestError(
            f"tool_choice of type {kind!r} is not supported by this server: name a function, or use required.",
            param="tool_choice.type",
        )
    CHOICE.check(tool_choice, "tool_choice")
    function = tool_choice.get("function")
    if kind is None or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidRequestError(
            'tool_choice must look like {"type": "function", "function": {"name": "..."}}.', param="body.tool_choice"
        )
    CHOSEN_FUNCTION.check(function, "tool_choice.function")
    name: str = function["name"]
    if name not in names:
        raise InvalidRequestError(
            f"tool_choice names the function {name!r}, which is not among the tools: {', '.join(names)}.",
            param="tool_choice.function.name",
        )
    return name


def _parse_tool(tool: Mapping[str, Any], place: str) -> dict[str, Any]:
    """One tool as templates expect it: without what is empty, and without `strict`, which is not for the model."""
    if tool.get("type") != "function":
        raise unknown_kind(place, tool.get("type"), ("function",))
    TOOL.check(tool, place)
    function, place = tool.get("function"), f"{place}.function"
    if not isinstance(function, dict):
        raise wrong_type(place, "an object")
    FUNCTION.check(function, place)
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequestError(
            f"{place}.name must have 1 to 128 letters, digits, '_', '-', '.' and ':', got {name!r}.",
            param=f"{place}.name",
        )
    if function.get("description") is not None:
        read_text(function, "description", place)
    if parameters is not None:
        if not isinstance(parameters, dict):
            raise wrong_type(f"{place}.parameters", "a JSON schema, an object")
        check_depth(parameters, f"{place}.parameters")
        if parameters.get("type", "object") != "object":
            raise InvalidRequestError(
                f'{place}.parameters.type must be "object": a function\'s arguments have names.',
                param=f"{place}.parameters.type",
            )
    if not isinstance(function.get("strict"), (bool, type(None))):
        raise wrong_type(f"{place}.strict", "true or false")
    given = {field: value for field, value in function.items() if field in _SHOWN_FIELDS and value is not None}
    return {"type": "function", "function": given}


def check_depth(value: Any, place: str) -> None:
    """Refuses values that are nested too deeply, before anything recursive sees them.

    Raises:
        InvalidRequestError: it is.
    """
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [inner for outer in level for inner in _members(outer)]
        if not level:
            return
    raise InvalidRequestError(f"{place} is nested more than {_MAX_DEPTH} levels deep.", param=place)


def _members(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [inner for inner in value.values() if isinstance(inner, (dict, list))]
    return [inner for inner in value if isinstance(inner, (dict, list))]


def _parameters(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a function's arguments, which are an object in any case; one that has none takes none."""
    nothing = {"properties": {}, "additionalProperties": False}
    return {"type": "object", **(tool["function"].get("parameters") or nothing)}


def _call_schema(tool: Mapping[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """One call of an array. References of the function's own schema get a place under the array's definitions."""
    name, parameters = tool["function"]["name"], _parameters(tool)
    if _has_reference(parameters):
        key = f"parameters_{len(definitions)}"
        definitions[key] = _moved(parameters, f"#/$defs/{key}")
        parameters = {"$ref": f"#/$defs/{key}"}
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "parameters": parameters},
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }


def _has_reference(schema: Any) -> bool:
    if isinstance(schema, dict):
        return isinstance(schema.get("$ref"), str) or any(_has_reference(inner) for inner in schema.values())
    return isinstance(schema, list) and any(_has_reference(inner) for inner in schema)


def _moved(schema: Any, root: str) -> Any:
    """A schema whose references to itself find their targets under another root."""
    if isinstance(schema, list):
        return [_moved(inner, root) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(inner, root) for key, inner in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = root + reference[1:]
    return moved
