"""The objects inside of Anthropic's bodies: messages, blocks and tools, and what may be in each of them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from paged_backend.handlers.openai.protocol.base import Refusal
from paged_backend.handlers.openai.protocol.objects import ObjectKind, Schema, list_of, text_or

_STRING: Schema = {"type": "string"}
_OBJECT: Schema = {"type": "object"}
_TOOLSET = Refusal("there are no toolsets here, give each tool by itself")
_CALLER = Refusal('all calls are the model\'s own, {"type": "direct"}', ({"type": "direct"},))


def _type(name: str) -> dict[str, Schema]:
    return {"type": {"const": name}}


TEXT = ObjectKind(
    {**_type("text"), "text": _STRING},
    # The SDK's own: what its parse() made of the text.
    harmless=("cache_control", "citations", "parsed_output"),
)
THINKING = ObjectKind({**_type("thinking"), "thinking": _STRING}, harmless=("signature",))
REDACTED_THINKING = ObjectKind(_type("redacted_thinking"), harmless=("data",))
TOOL_USE = ObjectKind(
    {**_type("tool_use"), "id": _STRING, "name": _STRING, "input": _OBJECT},
    harmless=("cache_control",),
    unsupported=MappingProxyType({"caller": _CALLER, "toolset_name": _TOOLSET}),
)
TOOL_RESULT = ObjectKind(
    {**_type("tool_result"), "tool_use_id": _STRING},
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
    {"name": _STRING, "input_schema": _OBJECT},
    {
        "type": {"const": "custom"},
        "description": _STRING,
        "strict": {"type": "boolean"},
        "input_examples": {"type": "array", "items": _OBJECT},
    },
    # Input is streamed as it is written, eagerly or not.
    harmless=("cache_control", "eager_input_streaming"),
    unsupported=MappingProxyType(
        {
            "allowed_callers": Refusal('all calls are the model\'s own, ["direct"]', (["direct"],)),
            "defer_loading": Refusal("all tools are shown to the model from the beginning", (False,)),
        }
    ),
)

MESSAGES_SCHEMA: Schema = {**list_of(*MESSAGES.values()), "minItems": 1}
SYSTEM_SCHEMA: Schema = {"anyOf": [*text_or(TEXT)["anyOf"], {"type": "null"}]}
TOOLS_SCHEMA: Schema = {"anyOf": [list_of(TOOL), {"type": "null"}]}
