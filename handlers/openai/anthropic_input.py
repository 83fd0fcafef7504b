"""From the body of /v1/messages to the chat request that it is: blocks become messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from paged_backend.errors import InvalidRequestError
from paged_backend.handlers.openai.items import read_objects, read_parts, read_text, unknown_kind, wrong_type
from paged_backend.handlers.openai.protocol.anthropic import CountTokensRequest, MessagesRequest, ToolChoice
from paged_backend.handlers.openai.protocol.chat import ChatRequest

_CHAT_NAMES = {
    "max_completion_tokens": "max_tokens",
    "response_format": "output_config.format",
    "stop": "stop_sequences",
}
"""What the chat's fields are called here, where the names differ."""

_ROLES = ("user", "assistant", "system")
_TEXT = {"text": "text"}
_BLOCKS = {
    "user": ("text", "tool_result"),
    "assistant": ("text", "thinking", "redacted_thinking", "tool_use"),
    "system": ("text",),
}
_TOOL_FIELDS = frozenset("type name description input_schema strict cache_control input_examples".split())
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def wants_thinking(request: MessagesRequest | CountTokensRequest) -> bool:
    """Whether the reply may hold thinking; where nothing is said it does not, as at Anthropic."""
    return request.thinking is not None and request.thinking.type != "disabled"


def as_chat(request: MessagesRequest | CountTokensRequest) -> tuple[ChatRequest, Mapping[str, str]]:
    """The chat request that a body is, and what the chat's fields are called in it.

    Raises:
        InvalidRequestError: a value is wrong, or of a kind that this server does not take.
    """
    messages, places = _messages(request)
    fields: dict[str, Any] = {
        "messages": messages,
        "max_completion_tokens": request.max_tokens,
        "stop": request.stop_sequences,
        "include_reasoning": wants_thinking(request),
    }
    if request.tools is not None and request.tools != []:
        tools = read_objects(request.tools, "tools")
        for place, _ in tools:
            places[f"{place}.function"] = place
            places[f"{place}.function.parameters"] = f"{place}.input_schema"
        fields["tools"] = [_tool(place, tool) for place, tool in tools]
    if request.tool_choice is not None:
        fields |= _tool_choice(request.tool_choice)
    if request.output_config is not None and request.output_config.format is not None:
        schema = {"name": "output", "schema": request.output_config.format.schema_}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    if not wants_thinking(request):
        fields["reasoning_effort"] = "none"
    elif request.output_config is not None:
        fields["reasoning_effort"] = request.output_config.effort
    names = {**_CHAT_NAMES, **places}
    return request.as_chat(fields, names), names


def _messages(request: MessagesRequest | CountTokensRequest) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The chat's messages, and the place in this body of each of theirs."""
    messages: list[dict[str, Any]] = []
    places: dict[str, str] = {}
    if request.system is not None and request.system not in ("", []):
        messages.append({"role": "system", "content": read_parts(request.system, "system", _TEXT)})
        places["messages.0"] = "system"
    if not request.messages and request.messages == []:
        raise InvalidRequestError("messages must not be empty.", param="messages")
    for place, message in read_objects(request.messages, "messages"):
        role = message.get("role")
        if role not in _ROLES:
            raise InvalidRequestError(
                f"{place}.role must be one of {', '.join(_ROLES)}, got {role!r}.", param=f"{place}.role"
            )
        for made in _parse(role, message.get("content"), f"{place}.content"):
            places[f"messages.{len(messages)}"] = place
            messages.append({"role": role, **made})
    return messages, places


def _parse(role: str, content: Any, place: str) -> list[dict[str, Any]]:
    """The chat's messages of one message: results of tools are some of their own, before what else is said."""
    if isinstance(content, str):
        return [{"content": read_parts(content, place, _TEXT)}]
    if not isinstance(content, list):
        raise wrong_type(place, "a string or a list of blocks")
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for block_place, block in read_objects(content, place):
        kind = block.get("type")
        if kind not in _BLOCKS[role]:
            raise unknown_kind(block_place, kind, _BLOCKS[role])
        match kind:
            case "text":
                texts.append(read_text(block, "text", block_place))
            case "thinking":
                thoughts.append(read_text(block, "thinking", block_place))
            case "tool_use":
                calls.append(_call(block, block_place))
            case "tool_result":
                results.append(_result(block, block_place))
    made: dict[str, Any] = {"content": "\n".join(texts)}
    if thoughts:
        made["reasoning"] = "\n".join(thoughts)
    if calls:
        made["tool_calls"] = calls
    return [*results, made] if texts or thoughts or calls or not results else results


def _call(block: Mapping[str, Any], place: str) -> dict[str, Any]:
    arguments = block.get("input")
    if not isinstance(arguments, dict):
        raise wrong_type(f"{place}.input", "an object")
    try:
        text = json.dumps(arguments, ensure_ascii=False)
    except RecursionError:
        raise InvalidRequestError(f"{place}.input is nested too deeply.", param=f"{place}.input") from None
    function = {"name": read_text(block, "name", place), "arguments": text}
    return {"id": read_text(block, "id", place), "type": "function", "function": function}


def _result(block: Mapping[str, Any], place: str) -> dict[str, Any]:
    content = block.get("content")
    text = "" if content is None else read_parts(content, f"{place}.content", _TEXT)
    return {"role": "tool", "tool_call_id": read_text(block, "tool_use_id", place), "content": text}


def _tool(place: str, tool: Mapping[str, Any]) -> dict[str, Any]:
    kind = tool.get("type")
    if kind not in (None, "custom"):
        raise unknown_kind(place, kind, ("custom",))
    for name, value in tool.items():
        if name not in _TOOL_FIELDS and value not in (None, False):
            raise InvalidRequestError(f"{place}.{name} is not supported: leave it out.", param=f"{place}.{name}")
    if not isinstance(tool.get("input_schema"), dict):
        raise wrong_type(f"{place}.input_schema", "a JSON schema, an object")
    function = {"name": tool.get("name"), "parameters": tool["input_schema"]}
    for name in ("description", "strict"):
        if tool.get(name) is not None:
            function[name] = tool[name]
    return {"type": "function", "function": function}


def _tool_choice(choice: ToolChoice) -> dict[str, Any]:
    if choice.type != "tool":
        if choice.name is not None:
            raise InvalidRequestError(
                f'tool_choice.name is for type "tool", not for {choice.type!r}: leave it out.', param="tool_choice.name"
            )
        asked: Any = _CHOICES[choice.type]
    elif choice.name is None:
        raise InvalidRequestError("tool_choice.name is missing: say which tool.", param="tool_choice.name")
    else:
        asked = {"type": "function", "function": {"name": choice.name}}
    return {"tool_choice": asked, "parallel_tool_calls": not choice.disable_parallel_tool_use}
