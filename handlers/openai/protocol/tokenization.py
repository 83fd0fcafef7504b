"""Bodies of /tokenize and /detokenize."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Any

from pydantic import WithJsonSchema

from paged_backend.handlers.openai.protocol.base import ListOf, Refusal, RequestBody
from paged_backend.handlers.openai.protocol.chat import TemplateFields
from paged_backend.handlers.openai.protocol.chat_objects import MESSAGES_SCHEMA, TOOLS_SCHEMA


class TokenizeRequest(TemplateFields):
    """Body of /tokenize: a prompt, or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[Any, WithJsonSchema(MESSAGES_SCHEMA)] = None
    tools: Annotated[Any, WithJsonSchema(TOOLS_SCHEMA)] = None
    return_token_strs: bool = False

    unsupported = MappingProxyType(
        {
            "media_io_kwargs": Refusal("this model reads and writes text only", ({},)),
            "mm_processor_kwargs": Refusal("this model reads and writes text only", ({},)),
        }
    )


class DetokenizeRequest(RequestBody):
    """Body of /detokenize."""

    model: str | None = None
    tokens: ListOf[int]
