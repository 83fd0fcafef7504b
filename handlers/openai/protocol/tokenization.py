"""Bodies of /tokenize and /detokenize."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Any

from pydantic import WithJsonSchema

from paged_backend.handlers.openai.protocol.base import RequestBody
from paged_backend.handlers.openai.protocol.chat import MESSAGES_SCHEMA


class TokenizeRequest(RequestBody):
    """Body of /tokenize: a prompt, or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[Any, WithJsonSchema(MESSAGES_SCHEMA)] = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool = False

    unsupported = MappingProxyType(
        {"chat_template": (), "media_io_kwargs": ({},), "mm_processor_kwargs": ({},), "tools": ([],)}
    )


class DetokenizeRequest(RequestBody):
    """Body of /detokenize."""

    model: str | None = None
    tokens: list[int]
