"""The objects inside of the bodies of /v1/responses: items, their parts, and tools, and what may be in each of them."""

from __future__ import annotations

from types import MappingProxyType

from paged_backend.handlers.openai.protocol.base import Refusal
from paged_backend.handlers.openai.protocol.objects import ObjectKind, Schema, list_of, text_or

_STRING: Schema = {"type": "string"}
_CALLER = Refusal('all calls are the model\'s own, {"type": "direct"}', ({"type": "direct"},))
_NAMESPACE = Refusal("there are no namespaces here, give each function by its name")
_ASYNC = Refusal("all calls are waited for", (False,))


def _type(name: str) -> dict[str, Schema]:
    return {"type": {"const": name}}


def _text(name: str, *harmless: str) -> ObjectKind:
    return ObjectKind({**_type(name), "text": _STRING}, harmless=harmless)


# `parsed` and `parsed_arguments` are the SDK's own: what its parse() made of a text.
PARTS = MappingProxyType(
    {
        "input_text": _text("input_text", "prompt_cache_breakpoint"),
        "output_text": _text("output_text", "annotations", "logprobs", "parsed"),
        "text": _text("text"),
        "refusal": ObjectKind({**_type("refusal"), "refusal": _STRING}, text_field="refusal"),
    }
)
"""Parts of contents by their type: all are text."""

REASONING_PARTS = MappingProxyType({name: _text(name) for name in ("reasoning_text", "summary_text")})

MESSAGE = ObjectKind(
    {"role": {"enum": ["user", "assistant", "system", "developer"]}, "content": text_or(*PARTS.values())},
    _type("message"),
    harmless=("id", "status", "phase"),
)
REASONING = ObjectKind(
    _type("reasoning"),
    {name: list_of(*REASONING_PARTS.values()) for name in ("content", "summary")},
    harmless=("id", "status", "encrypted_content"),
)
FUNCTION_CALL = ObjectKind(
    {**_type("function_call"), "call_id": _STRING, "name": _STRING, "arguments": _STRING},
    harmless=("id", "status", "created_by", "parsed_arguments"),
    unsupported=MappingProxyType({"async": _ASYNC, "caller": _CALLER, "namespace": _NAMESPACE}),
)
FUNCTION_CALL_OUTPUT = ObjectKind(
    {**_type("function_call_output"), "call_id": _STRING, "output": text_or(*PARTS.values())},
    {"name": _STRING},
    harmless=("id", "status", "created_by"),
    unsupported=MappingProxyType({"caller": _CALLER, "namespace": _NAMESPACE}),
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
    {**_type("function"), "name": _STRING},
    {"description": _STRING, "parameters": {"type": "object"}, "strict": {"type": "boolean"}},
    unsupported=MappingProxyType(
        {
            "allowed_callers": Refusal('all calls are the model\'s own, ["direct"]', (["direct"],)),
            "async": _ASYNC,
            "defer_loading": Refusal("all tools are shown to the model from the beginning", (False,)),
            "output_schema": Refusal("say in the description what the function returns", ({},)),
        }
    ),
)

INPUT_SCHEMA: Schema = {"anyOf": [{"type": "string"}, {**list_of(*ITEMS.values()), "minItems": 1}]}
TOOLS_SCHEMA: Schema = {"anyOf": [list_of(TOOL), {"type": "null"}]}
