"""The objects inside of the bodies of /v1/responses: items, their parts, and tools, and what may be in each of them."""

from __future__ import annotations

from types import MappingProxyType

from paged_backend.handlers.openai.protocol.base import Refusal
from paged_backend.handlers.openai.protocol.objects import (
    ALL_AT_ONCE,
    DIRECT_CALLER,
    DIRECT_CALLERS,
    STRING,
    ObjectKind,
    Schema,
    list_of,
    of_type,
    text_or,
)

_NAMESPACE = Refusal("there are no namespaces here, give each function by its name")
_ASYNC = Refusal("all calls are waited for", (False,))


def _text(name: str, *harmless: str) -> ObjectKind:
    return ObjectKind({**of_type(name), "text": STRING}, harmless=harmless)


# `parsed` and `parsed_arguments` are the SDK's own: what its parse() made of a text.
PARTS = MappingProxyType(
    {
        "input_text": _text("input_text", "prompt_cache_breakpoint"),
        "output_text": _text("output_text", "annotations", "logprobs", "parsed"),
        "text": _text("text"),
        "refusal": ObjectKind({**of_type("refusal"), "refusal": STRING}, text_field="refusal"),
    }
)
"""Parts of contents by their type: all are text."""

REASONING_PARTS = MappingProxyType({name: _text(name) for name in ("reasoning_text", "summary_text")})

MESSAGE = ObjectKind(
    {"role": {"enum": ["user", "assistant", "system", "developer"]}, "content": text_or(*PARTS.values())},
    of_type("message"),
    harmless=("id", "status", "phase"),
)
REASONING = ObjectKind(
    of_type("reasoning"),
    {name: list_of(*REASONING_PARTS.values()) for name in ("content", "summary")},
    harmless=("id", "status", "encrypted_content"),
)
FUNCTION_CALL = ObjectKind(
    {**of_type("function_call"), "call_id": STRING, "name": STRING, "arguments": STRING},
    harmless=("id", "status", "created_by", "parsed_arguments"),
    unsupported=MappingProxyType({"async": _ASYNC, "caller": DIRECT_CALLER, "namespace": _NAMESPACE}),
)
FUNCTION_CALL_OUTPUT = ObjectKind(
    {**of_type("function_call_output"), "call_id": STRING, "output": text_or(*PARTS.values())},
    {"name": STRING},
    harmless=("id", "status", "created_by"),
    unsupported=MappingProxyType({"caller": DIRECT_CALLER, "namespace": _NAMESPACE}),
)
ITEMS = MappingProxyType(
    {
        "message": MESSAGE,
        "function_call": FUNCTION_CALL,
        "function_call_output": FUNCTION_CALL_OUTPUT,
        "reasoning": REASONING,
    }
)
"""Items by their type."""

TOOL = ObjectKind(
    {**of_type("function"), "name": STRING},
    {"description": STRING, "parameters": {"type": "object"}, "strict": {"type": "boolean"}},
    unsupported=MappingProxyType(
        {
            "allowed_callers": DIRECT_CALLERS,
            "async": _ASYNC,
            "defer_loading": ALL_AT_ONCE,
            "output_schema": Refusal("say in the description what the function returns", ({},)),
        }
    ),
)

INPUT_SCHEMA: Schema = {"anyOf": [{"type": "string"}, {**list_of(*ITEMS.values()), "minItems": 1}]}
TOOLS_SCHEMA: Schema = {"anyOf": [list_of(TOOL), {"type": "null"}]}
