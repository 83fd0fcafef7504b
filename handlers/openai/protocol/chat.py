"""Body of /v1/chat/completions."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Any

from pydantic import WithJsonSchema

from paged_backend.handlers.openai.protocol.generation import GenerationRequest

MESSAGES_SCHEMA = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "object", "required": ["role"], "properties": {"role": {"type": "string"}}},
}
"""What `parse_messages` takes, roughly: what else a message holds depends on its role."""


class ChatRequest(GenerationRequest):
    """Body of /v1/chat/completions. `messages` are checked where they are rendered."""

    messages: Annotated[Any, WithJsonSchema(MESSAGES_SCHEMA)]
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None

    unsupported = MappingProxyType(
        {
            **GenerationRequest.unsupported,
            "audio": (),
            "chat_template": (),
            "documents": ([],),
            "echo": (False,),
            "function_call": ("none",),
            "functions": ([],),
            "include_reasoning": (True,),
            "media_io_kwargs": ({},),
            "mm_processor_kwargs": ({},),
            "modalities": (["text"],),
            "reasoning_effort": (),
            "return_prompt_text": (False,),
            "tool_choice": ("none",),
            "tools": ([],),
            "verbosity": ("medium",),
            "web_search_options": (),
        }
    )
