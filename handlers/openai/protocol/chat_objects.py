"""The objects inside of the chat's bodies: messages, parts, calls and tools, and what may be in each of them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from paged_backend.handlers.openai.protocol.base import Refusal
from paged_backend.handlers.openai.protocol.objects import OBJECT, STRING, ObjectKind, Schema, list_of, of_type

FUNCTION_NAME = r"^[A-Za-z0-9_.:-]{1,128}$"
"""What a tool may be called."""

_TEXT_ONLY = Refusal("this model reads and writes text only", ([],))
_NOT_THE_ASSISTANT = MappingProxyType(
    {
        "tool_calls": Refusal("only the assistant calls tools", ([],)),
        "reasoning": Refusal("only the assistant reasons"),
        "reasoning_content": Refusal("only the assistant reasons"),
    }
)
_NOT_A_TOOL = MappingProxyType({"tool_call_id": Refusal('it is for messages of role "tool"')})

# The hints of Anthropic's and OpenAI's newer models: prefixes are cached anyhow.
TEXT = ObjectKind({**of_type("text"), "text": STRING}, harmless=("cache_control", "prompt_cache_breakpoint"))
REFUSAL = ObjectKind({**of_type("refusal"), "refusal": STRING}, text_field="refusal")

_TEXTS = MappingProxyType({"text": TEXT})
PARTS: Mapping[str, Mapping[str, ObjectKind]] = MappingProxyType(
    {
        "system": _TEXTS,
        "developer": _TEXTS,
        "user": _TEXTS,
        "assistant": MappingProxyType({"text": TEXT, "refusal": REFUSAL}),
        "tool": _TEXTS,
    }
)
"""Parts of contents by who says them, and by their type: all are text."""

# `parsed` and `parsed_arguments` are OpenAI's SDK's own: what its parse() made of a text. `index` is in its streams.
CALLED_FUNCTION = ObjectKind(
    {"name": STRING}, {"arguments": {"type": ["string", "object"]}}, harmless=("parsed_arguments",)
)
CALL = ObjectKind({"function": CALLED_FUNCTION.schema()}, {**of_type("function"), "id": STRING}, harmless=("index",))


def _content(role: str) -> Schema:
    return {"anyOf": [STRING, {**list_of(*PARTS[role].values()), "minItems": 1}]}


def _said_to_the_model(role: str) -> ObjectKind:
    return ObjectKind(
        {"role": {"const": role}, "content": _content(role)},
        {"name": STRING},
        harmless=("cache_control",),
        unsupported=MappingProxyType({**_NOT_THE_ASSISTANT, **_NOT_A_TOOL}),
    )


MESSAGES: Mapping[str, ObjectKind] = MappingProxyType(
    {
        **{role: _said_to_the_model(role) for role in ("system", "developer", "user")},
        "assistant": ObjectKind(
            {"role": {"const": "assistant"}},
            {
                # With calls or reasoning, it may have none.
                "content": _content("assistant"),
                "name": STRING,
                "tool_calls": list_of(CALL),
                "reasoning": STRING,
                "reasoning_content": STRING,
            },
            # The last two are litellm's own: what a provider's answer had beside, told another time.
            harmless=("annotations", "cache_control", "parsed", "provider_specific_fields", "thinking_blocks"),
            unsupported=MappingProxyType(
                {
                    **_NOT_A_TOOL,
                    "audio": _TEXT_ONLY,
                    "function_call": Refusal("use tool_calls"),
                    "images": _TEXT_ONLY,
                    "refusal": Refusal("send it as content", ("",)),
                }
            ),
        ),
        "tool": ObjectKind(
            {"role": {"const": "tool"}, "content": _content("tool")},
            {"name": STRING, "tool_call_id": STRING},
            harmless=("cache_control",),
            unsupported=_NOT_THE_ASSISTANT,
        ),
    }
)
"""Messages by role."""

FUNCTION = ObjectKind(
    {"name": {**STRING, "pattern": FUNCTION_NAME}},
    {"description": STRING, "parameters": OBJECT, "strict": {"type": "boolean"}},
)
TOOL = ObjectKind({**of_type("function"), "function": FUNCTION.schema()}, harmless=("cache_control",))

CHOSEN_FUNCTION = ObjectKind({"name": STRING})
CHOICE = ObjectKind({**of_type("function"), "function": CHOSEN_FUNCTION.schema()})
"""The function that has to be called."""

CHOICES = ("none", "auto", "required")

MESSAGES_SCHEMA: Schema = {**list_of(*MESSAGES.values()), "minItems": 1}
TOOLS_SCHEMA: Schema = {"anyOf": [list_of(TOOL), {"type": "null"}]}
TOOL_CHOICE_SCHEMA: Schema = {"anyOf": [{"enum": [*CHOICES, None]}, CHOICE.schema()]}
