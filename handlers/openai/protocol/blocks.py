"""The objects inside of Anthropic's bodies: messages, blocks and tools, and what may be in each of them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from paged_backend.handlers.openai.protocol.base import Refusal
from paged_backend.handlers.openai.protocol.objects import (
    ALL_AT_ONCE,
    DIRECT_CALLER,
    DIRECT_CALLERS,
    OBJECT,
    STRING,
    ObjectKind,
    Schema,
    list_of,
    of_type,
    text_or,
)

_TOOLSET = Refusal("there are no toolsets here, give each tool by itself")


TEXT = ObjectKind(
    {**of_type("text"), "text": STRING},
    # The SDK's own: what its parse() made of the text.
    harmless=("cache_control", "citations", "parsed_output"),
)
THINKING = ObjectKind({**of_type("thinking"), "thinking": STRING}, harmless=("signature",))
REDACTED_THINKING = ObjectKind(of_type("redacted_thinking"), harmless=("data",))
TOOL_USE = ObjectKind(
    {**of_type("tool_use"), "id": STRING, "name": STRING, "input": OBJECT},
    harmless=("cache_control",),
    unsupported=MappingProxyType({"caller": DIRECT_CALLER, "toolset_name": _TOOLSET}),
)
TOOL_RESULT = ObjectKind(
    {**of_type("tool_result"), "tool_use_id": STRING},
    {"content": text_or(TEXT), "is_error": {"type": "boolean"}},
    harmless=("cache_control",),
    unsupported=MappingProxyType({"toolset_name": _TOOLSET}),
)

BLOCKS: Mapping[str, Mapping[str, ObjectKind]] = MappingProxyType(
    {
        "user": {"text": TEXT, "tool_result": TOOL_RESULT},
        "assistant": {
            "text": TEXT,
            "thinking": THINKING,
            "redacted_thinking": REDACTED_THINKING,
            "tool_use": TOOL_USE,
        },
        "system": {"text": TEXT},
    }
)
"""Who may say what: by role, and by the block's type."""

MESSAGES = MappingProxyType(
    {
        role: ObjectKind({"role": {"const": role}, "content": text_or(*blocks.values())})
        for role, blocks in BLOCKS.items()
    }
)
"""Messages by role."""

TOOL = ObjectKind(
    {"name": STRING, "input_schema": OBJECT},
    {
        "type": {"const": "custom"},
        "description": STRING,
        "strict": {"type": "boolean"},
        "input_examples": {"type": "array", "items": OBJECT},
    },
    # Input is streamed as it is written, eagerly or not.
    harmless=("cache_control", "eager_input_streaming"),
    unsupported=MappingProxyType(
        {
            "allowed_callers": DIRECT_CALLERS,
            "defer_loading": ALL_AT_ONCE,
        }
    ),
)

MESSAGES_SCHEMA: Schema = {**list_of(*MESSAGES.values()), "minItems": 1}
SYSTEM_SCHEMA: Schema = {"anyOf": [*text_or(TEXT)["anyOf"], {"type": "null"}]}
TOOLS_SCHEMA: Schema = {"anyOf": [list_of(TOOL), {"type": "null"}]}
