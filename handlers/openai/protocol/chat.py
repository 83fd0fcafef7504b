"""Body of /v1/chat/completions."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Any

from pydantic import WithJsonSchema

from paged_backend.handlers.openai.protocol.base import RequestBody
from paged_backend.handlers.openai.protocol.generation import GenerationRequest

MESSAGES_SCHEMA = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "object", "required": ["role"], "properties": {"role": {"type": "string"}}},
}
"""What `parse_messages` takes, roughly: what else a message holds depends on its role."""


class TemplateFields(RequestBody):
    """The fields that say how a conversation is written; /tokenize has them too."""

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, str]] | None = None
    reasoning_effort: str | None = None


class ChatRequest(GenerationRequest, TemplateFields):
    """Body of /v1/chat/completions. `messages` and `tools` are checked where they are read."""

    messages: Annotated[Any, WithJsonSchema(MESSAGES_SCHEMA)]
    echo: bool = False
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool = True
    include_reasoning: bool = True

    unsupported = MappingProxyType(
        {
            **GenerationRequest.unsupported,
            "audio": (),
            "function_call": ("none",),
            "functions": ([],),
            "media_io_kwargs": ({},),
            "mm_processor_kwargs": ({},),
            "modalities": (["text"],),
            "return_prompt_text": (False,),
            "verbosity": ("medium",),
            "web_search_options": (),
        }
    )
    successors = MappingProxyType({"function_call": "tool_choice", "functions": "tools"})
