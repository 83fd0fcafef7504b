"""From the body of /v1/responses to the chat request that it is: items become messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paged_backend.errors import InvalidRequestError
from paged_backend.handlers.openai.items import kind_of, read_objects, read_parts, read_text, unknown_kind, wrong_type
from paged_backend.handlers.openai.protocol.base import check_text
from paged_backend.handlers.openai.protocol.chat import ChatRequest
from paged_backend.handlers.openai.protocol.input_items import ITEMS, PARTS, REASONING_PARTS, TOOL
from paged_backend.handlers.openai.protocol.responses import INCLUDABLE, ResponsesRequest, TextFormat

_CHAT_NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "truncate_prompt_tokens": "truncation",
}
"""What the chat's fields are called here, where the names differ."""

_ROLES = ("user", "assistant", "system", "developer")
_TOOL_FIELDS = ("name", "description", "parameters", "strict")


def wants_logprobs(request: ResponsesRequest) -> bool:
    """Whether the text's tokens come with their log probabilities."""
    return bool(request.top_logprobs) or "message.output_text.logprobs" in (request.include or ())


def as_chat(request: ResponsesRequest) -> tuple[ChatRequest, Mapping[str, str]]:
    """The chat request that a body is, and what the chat's fields are called in it.

    Raises:
        InvalidRequestError: a value is wrong, or asks for what a server without memory cannot do.
    """
    _check(request)
    messages, places = _messages(request)
    fields: dict[str, Any] = {
        "messages": messages,
        "max_completion_tokens": request.max_output_tokens,
        "truncate_prompt_tokens": -1 if request.truncation == "auto" else None,
    }
    if wants_logprobs(request):
        fields |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    if request.tools is not None and request.tools != []:
        tools = read_objects(request.tools, "tools")
        places |= {f"{place}.function": place for place, _ in tools}
        fields["tools"] = [_tool(place, tool) for place, tool in tools]
        fields["tool_choice"] = _tool_choice(request.tool_choice)
        fields["parallel_tool_calls"] = request.parallel_tool_calls
    elif request.tool_choice not in (None, "auto", "none"):
        fields["tool_choice"] = _tool_choice(request.tool_choice)
    if request.text is not None and request.text.format is not None:
        fields["response_format"] = _response_format(request.text.format)
    if request.reasoning is not None:
        fields["reasoning_effort"] = request.reasoning.effort
    names = {**_CHAT_NAMES, **places}
    return request.as_chat(fields, names), names


def _check(request: ResponsesRequest) -> None:
    if request.previous_response_id is not None:
        raise InvalidRequestError(
            "previous_response_id: this server keeps no responses. Send the whole conversation as input: the output "
            "items of earlier responses, as they came, among the new ones.",
            param="previous_response_id",
        )
    for index, name in enumerate(request.include or ()):
        if name not in INCLUDABLE:
            raise InvalidRequestError(
                f"include.{index} must be one of {', '.join(INCLUDABLE)}, got {name!r}.", param=f"include.{index}"
            )
    if request.stream_options is not None and not request.stream:
        raise InvalidRequestError("stream_options needs stream: true.", param="stream_options")
    metadata = request.metadata or {}
    if len(metadata) > 16 or any(len(key) > 64 or len(value) > 512 for key, value in metadata.items()):
        raise InvalidRequestError(
            "metadata may hold 16 pairs, with keys of 64 and values of 512 characters at most.", param="metadata"
        )
    check_text(request.instructions, "instructions")


def _messages(request: ResponsesRequest) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The chat's messages, and the place in this body of each of theirs."""
    messages: list[dict[str, Any]] = []
    places: dict[str, str] = {}
    if request.instructions:
        messages.append({"role": "system", "content": request.instructions})
        places["messages.0"] = "instructions"
    if isinstance(request.input, str):
        check_text(request.input, "input")
        return [*messages, {"role": "user", "content": request.input}], places
    if not isinstance(request.input, list):
        raise wrong_type("input", "a string or a list of items")
    if not request.input:
        raise InvalidRequestError("input must not be empty.", param="input")
    for place, item in read_objects(request.input, "input"):
        _add_item(messages, item, place)
        places.setdefault(f"messages.{len(messages) - 1}", place)
    return messages, places


def _add_item(messages: list[dict[str, Any]], item: Mapping[str, Any], place: str) -> None:
    """Adds an item. What the assistant thought, said and called in a row is one message of the chat."""
    if item.get("type") is None and "role" in item:
        item = {**item, "type": "message"}
    if item.get("type") == "item_reference":
        raise InvalidRequestError(
            f"{place}: this server keeps no items that could be referred to. Send the item itself.",
            param=f"{place}.type",
        )
    match kind_of(item, place, ITEMS):
        case "message":
            role = item.get("role")
            if role not in _ROLES:
                raise InvalidRequestError(
                    f"{place}.role must be one of {', '.join(_ROLES)}, got {role!r}.", param=f"{place}.role"
                )
            text = read_parts(item.get("content"), f"{place}.content", PARTS)
            turn = _open_turn(messages, {"content", "tool_calls"}) if role == "assistant" else _add(messages, role)
            turn["content"] = text
        case "reasoning":
            name = "content" if item.get("content") else "summary"
            text = read_parts(item.get(name) or [], f"{place}.{name}", REASONING_PARTS)
            _open_turn(messages, {"reasoning", "content", "tool_calls"})["reasoning"] = text
        case "function_call":
            function = {name: read_text(item, name, place) for name in ("name", "arguments")}
            call = {"id": read_text(item, "call_id", place), "type": "function", "function": function}
            _open_turn(messages, set()).setdefault("tool_calls", []).append(call)
        case "function_call_output":
            turn = _add(messages, "tool")
            turn["tool_call_id"] = read_text(item, "call_id", place)
            turn["content"] = read_parts(item.get("output"), f"{place}.output", PARTS)
            if item.get("name") is not None:
                turn["name"] = read_text(item, "name", place)


def _add(messages: list[dict[str, Any]], role: str) -> dict[str, Any]:
    messages.append({"role": role})
    return messages[-1]


def _open_turn(messages: list[dict[str, Any]], closed_by: set[str]) -> dict[str, Any]:
    """The assistant's message that goes on, or a new one where the last has one of these fields already."""
    if messages and messages[-1]["role"] == "assistant" and closed_by.isdisjoint(messages[-1]):
        return messages[-1]
    return _add(messages, "assistant")


def _tool(place: str, tool: Mapping[str, Any]) -> dict[str, Any]:
    kind = tool.get("type")
    if kind != "function":
        raise unknown_kind(place, kind, ("function",))
    TOOL.check(tool, place)
    function = {name: tool[name] for name in _TOOL_FIELDS if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _tool_choice(choice: Any) -> Any:
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") != "function" or set(choice) != {"type", "name"}:
        raise InvalidRequestError(
            'tool_choice must be "none", "auto", "required", or {"type": "function", "name": "..."}.',
            param="tool_choice",
        )
    return {"type": "function", "function": {"name": choice["name"]}}


def _response_format(form: TextFormat) -> dict[str, Any] | None:
    if form.type != "json_schema":
        for name in ("name", "description", "schema", "strict"):
            if getattr(form, "schema_" if name == "schema" else name) is not None:
                raise InvalidRequestError(
                    f'text.format.{name} is for type "json_schema", not for {form.type!r}: leave it out.',
                    param=f"text.format.{name}",
                )
    if form.type == "text":
        return None
    if form.type == "json_object":
        return {"type": "json_object"}
    if form.schema_ is None:
        raise InvalidRequestError("text.format.schema is missing.", param="text.format.schema")
    schema = {"name": form.name, "description": form.description, "schema": form.schema_, "strict": form.strict}
    return {
        "type": "json_schema",
        "json_schema": {name: value for name, value in schema.items() if value is not None},
    }
