"""A body's `messages`: checked, and as chat templates expect them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paged_backend.errors import InvalidRequestError
from paged_backend.handlers.openai.items import read_objects, read_parts, read_text, unknown_kind, wrong_type
from paged_backend.handlers.openai.prompts import too_long
from paged_backend.handlers.openai.protocol.base import check_text
from paged_backend.handlers.openai.protocol.chat_objects import CALL, CALLED_FUNCTION, MESSAGES, PARTS
from paged_backend.handlers.openai.tools import check_depth
from paged_backend.handlers.openai.wire import decode_json

_TEXT_FIELDS = ("name", "tool_call_id", "reasoning", "reasoning_content")
_SAY_ENOUGH = ("tool_calls", "reasoning", "reasoning_content")
"""Fields of the assistant's messages that need no content beside them."""


def parse_messages(value: Any, *, max_messages: int) -> list[dict[str, Any]]:
    """The messages of a chat: `role`, `content` as text, and what else they have of names, calls and reasoning.

    An assistant's message may have calls in place of content; their arguments become objects, as templates want them.

    Args:
        max_messages: the model's context length: every message takes a token at least.

    Raises:
        InvalidRequestError: `param` names the place, such as "messages.0.role".
    """
    if not isinstance(value, list):
        raise wrong_type("messages", "a list of objects")
    if not value:
        raise InvalidRequestError("messages must not be empty.", param="messages")
    if len(value) > max_messages:
        raise too_long(f"{len(value)} messages", max_messages, "messages")
    return [_parse_message(message, place) for place, message in read_objects(value, "messages")]


def _parse_message(message: Mapping[str, Any], place: str) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str) or role not in MESSAGES:
        raise InvalidRequestError(
            f"{place}.role must be one of {', '.join(MESSAGES)}, got {role!r}.", param=f"{place}.role"
        )
    MESSAGES[role].check(message, place)
    parsed: dict[str, Any] = {"role": role}
    if role == "assistant" and message.get("tool_calls") not in (None, []):
        calls = read_objects(message["tool_calls"], f"{place}.tool_calls")
        parsed["tool_calls"] = [_tool_call(call, call_place) for call_place, call in calls]
    for name in _TEXT_FIELDS:
        if message.get(name) is not None:
            parsed[name] = read_text(message, name, place)
    content = message.get("content")
    if content is None and not parsed.keys().isdisjoint(_SAY_ENOUGH):
        parsed["content"] = ""  # a reply may be calls alone, but templates write what is there
    elif content == []:
        raise wrong_type(f"{place}.content", "a string or a list of parts that is not empty")
    else:
        parsed["content"] = read_parts(content, f"{place}.content", PARTS[role])
    return parsed


def _tool_call(call: Mapping[str, Any], place: str) -> dict[str, Any]:
    if call.get("type") not in (None, "function"):
        raise unknown_kind(place, call["type"], ("function",))
    CALL.check(call, place)
    function = call.get("function")
    if not isinstance(function, dict):
        raise wrong_type(f"{place}.function", 'an object such as {"name": "...", "arguments": "..."}')
    CALLED_FUNCTION.check(function, f"{place}.function")
    parsed: dict[str, Any] = {"type": "function"}
    if call.get("id") is not None:
        parsed["id"] = read_text(call, "id", place)
    parsed["function"] = {
        "name": read_text(function, "name", f"{place}.function"),
        "arguments": _arguments(function.get("arguments"), f"{place}.function.arguments"),
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
