"""A body's `messages`: checked, and as chat templates expect them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paged_backend.errors import InvalidRequestError
from paged_backend.handlers.openai.prompts import too_long
from paged_backend.handlers.openai.protocol.base import check_text
from paged_backend.handlers.openai.tools import check_depth
from paged_backend.handlers.openai.wire import decode_json

_ROLES = ("system", "developer", "user", "assistant", "tool")
_TEXT_FIELDS = ("name", "tool_call_id")
_REASONING_FIELDS = ("reasoning", "reasoning_content")
_FIELDS = frozenset({"role", "content", "tool_calls", *_TEXT_FIELDS, *_REASONING_FIELDS})


def parse_messages(value: Any, *, max_messages: int) -> list[dict[str, Any]]:
    """The messages of a chat: `role`, `content` as text, and what else they have of names, calls and reasoning.

    An assistant's message may have calls in place of content; their arguments become objects, as templates want them.

    Args:
        max_messages: the model's context length: every message takes a token at least.

    Raises:
        InvalidRequestError: `param` names the place, such as "messages.0.role".
    """
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise InvalidRequestError("messages: must be a list of objects.", param="body.messages")
    if not value:
        raise InvalidRequestError("messages must not be empty.", param="messages")
    if len(value) > max_messages:
        raise too_long(f"{len(value)} messages", max_messages, "messages")
    return [_parse_message(message, f"messages.{index}") for index, message in enumerate(value)]


def _parse_message(message: Mapping[str, Any], place: str) -> dict[str, Any]:
    role = message.get("role")
    if role not in _ROLES:
        raise InvalidRequestError(
            f"{place}.role must be one of {', '.join(_ROLES)}, got {role!r}.", param=f"{place}.role"
        )
    for name, value in message.items():
        # Clients send a reply's message back as they got it, with the fields that it leaves empty.
        if name not in _FIELDS and value is not None and value != []:
            raise InvalidRequestError(
                f"{place}.{name} is not supported by this server: leave it out.", param=f"{place}.{name}"
            )
    parsed: dict[str, Any] = {"role": role}
    calls = message.get("tool_calls")
    if calls is not None and calls != []:
        if role != "assistant":
            raise InvalidRequestError(
                f"{place}.tool_calls: only the assistant calls tools.", param=f"{place}.tool_calls"
            )
        parsed["tool_calls"] = _tool_calls(calls, f"{place}.tool_calls")
    for name in (*_TEXT_FIELDS, *_REASONING_FIELDS):
        if message.get(name) is not None:
            parsed[name] = _text(message[name], f"{place}.{name}")
    if message.get("content") is None and (calls or not parsed.keys().isdisjoint(_REASONING_FIELDS)):
        parsed["content"] = ""  # a reply may be calls alone, but templates write what is there
    else:
        parsed["content"] = _content(message, place)
    return parsed


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequestError(f"{place} must be a string.", param=f"body.{place}")
    check_text(value, place)
    return value


def _content(message: Mapping[str, Any], place: str) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return _text(content, f"{place}.content")
    if not isinstance(content, list) or not content:
        raise InvalidRequestError(
            f"{place}.content must be a string or a list of text parts.", param=f"body.{place}.content"
        )
    texts = []
    for index, part in enumerate(content):
        part_place = f"{place}.content.{index}"
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            raise InvalidRequestError(
                f'{part_place} must be an object such as {{"type": "text", "text": "..."}}.',
                param=f"body.{part_place}",
            )
        if kind != "text":
            raise InvalidRequestError(
                f"{part_place}: this model takes text only, not {kind!r}.", param=f"{part_place}.type"
            )
        texts.append(_text(part.get("text"), f"{part_place}.text"))
    return "\n".join(texts)


def _tool_calls(calls: Any, place: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise InvalidRequestError(f"{place} must be a list of objects.", param=f"body.{place}")
    return [_tool_call(call, f"{place}.{index}") for index, call in enumerate(calls)]


def _tool_call(call: Any, place: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise InvalidRequestError(
            f'{place} must look like {{"id": "...", "type": "function", "function": {{"name": "...", "arguments": '
            f'"..."}}}}.',
            param=f"body.{place}",
        )
    if call.get("type", "function") != "function":
        raise InvalidRequestError(f'{place}.type must be "function".', param=f"{place}.type")
    parsed: dict[str, Any] = {"type": "function"}
    if call.get("id") is not None:
        parsed["id"] = _text(call["id"], f"{place}.id")
    arguments = function.get("arguments")
    parsed["function"] = {
        "name": _text(function.get("name"), f"{place}.function.name"),
        "arguments": _arguments(arguments, f"{place}.function.arguments"),
    }
    return parsed


def _arguments(value: Any, place: str) -> dict[str, Any]:
    """A call's arguments as an object; the wire has them as JSON in a string, and none as an empty one."""
    if isinstance(value, str):
        check_text(value, place)
        try:
            value = decode_json(value) if value.strip() else {}
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(f"{place} must be JSON, an object in a string: {error}.", param=place) from None
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{place} must be JSON, an object in a string.", param=place)
    check_depth(value, place)
    return value
