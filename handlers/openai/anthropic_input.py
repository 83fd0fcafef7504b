"""From the body of /v1/messages to the chat request that it is: blocks become messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from paged_backend.errors import InvalidRequestError
from paged_backend.handlers.openai.items import kind_of, read_objects, read_parts, read_text, unknown_kind, wrong_type
from paged_backend.handlers.openai.protocol.anthropic import CountTokensRequest, MessagesRequest, ToolChoice
from paged_backend.handlers.openai.protocol.blocks import BLOCKS, MESSAGES, TEXT, TOOL
from paged_backend.handlers.openai.protocol.chat import ChatRequest

_CHAT_NAMES = {
    "max_completion_tokens": "max_tokens",
    "response_format": "output_config.format",
    "stop": "stop_sequences",
    "thinking_token_budget": "thinking.budget_tokens",
}
"""What the chat's fields are called here, where the names differ."""

_TEXTS = {"text": TEXT}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


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
        **_thinking(request),
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
    names = {**_CHAT_NAMES, **places}
    return request.as_chat(fields, names), names


def _thinking(request: MessagesRequest | CountTokensRequest) -> dict[str, Any]:
    """The chat's fields for it. Where nothing is said there is no thinking, as at Anthropic."""
    thinking = request.thinking
    if thinking is None or thinking.type == "disabled":
        fields: dict[str, Any] = {"include_reasoning": False, "reasoning_effort": "none"}
    else:
        effort = None if request.output_config is None else request.output_config.effort
        fields = {"include_reasoning": thinking.display != "omitted", "reasoning_effort": effort}
    if thinking is not None and thinking.budget_tokens is not None:
        if thinking.type != "enabled":
            raise InvalidRequestError(
                f'thinking.budget_tokens is for type "enabled", not for {thinking.type!r}: leave it out.',
                param="thinking.budget_tokens",
            )
        fields["thinking_token_budget"] = thinking.budget_tokens
    return fields


def _messages(request: MessagesRequest | CountTokensRequest) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The chat's messages, and the place in this body of each of theirs."""
    messages: list[dict[str, Any]] = []
    places: dict[str, str] = {}
    if request.system is not None and request.system not in ("", []):
        messages.append({"role": "system", "content": read_parts(request.system, "system", _TEXTS)})
        places["messages.0"] = "system"
    if not request.messages and request.messages == []:
        raise InvalidRequestError("messages must not be empty.", param="messages")
    for place, message in read_objects(request.messages, "messages"):
        role = message.get("role")
        if not isinstance(role, str) or role not in MESSAGES:
            raise InvalidRequestError(
                f"{place}.role must be one of {', '.join(MESSAGES)}, got {role!r}.", param=f"{place}.role"
            )
        MESSAGES[role].check(message, place)
        for made in _parse(role, message.get("content"), f"{place}.content"):
            places[f"messages.{len(messages)}"] = place
            messages.append({"role": role, **made})
    return messages, places


def _parse(role: str, content: Any, place: str) -> list[dict[str, Any]]:
    """The chat's messages of one message: results of tools are some of their own, before what else is said."""
    if isinstance(content, str):
        return [{"content": read_parts(content, place, _TEXTS)}]
    if not isinstance(content, list):
        raise wrong_type(place, "a string or a list of blocks")
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for block_place, block in read_objects(content, place):
        match kind_of(block, block_place, BLOCKS[role]):
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
    text = "" if content is None else read_parts(content, f"{place}.content", _TEXTS)
    failed = block.get("is_error")
    if failed is not None and not isinstance(failed, bool):
        raise wrong_type(f"{place}.is_error", "true or false")
    if failed:
        # Chat templates know results, and no word for those that are none: the text has to say it.
        text = f"Error: {text}" if text else "Error"
    return {"role": "tool", "tool_call_id": read_text(block, "tool_use_id", place), "content": text}


def _tool(place: str, tool: Mapping[str, Any]) -> dict[str, Any]:
    kind = tool.get("type")
    if kind not in (None, "custom"):
        raise unknown_kind(place, kind, ("custom",))
    TOOL.check(tool, place)
    schema = tool.get("input_schema")
    if not isinstance(schema, dict):
        raise wrong_type(f"{place}.input_schema", "a JSON schema, an object")
    if tool.get("input_examples") is not None:
        examples = [example for _, example in read_objects(tool["input_examples"], f"{place}.input_examples")]
        schema = {**schema, "examples": examples}  # JSON schema's own word for them
    function = {"name": tool.get("name"), "parameters": schema}
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
