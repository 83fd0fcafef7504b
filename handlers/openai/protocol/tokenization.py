"""Bodies of /tokenize and /detokenize."""

from __future__ import annotations

from typing import Any

from paged_backend.handlers.openai.protocol.base import RequestBody
from paged_backend.handlers.openai.protocol.chat import TemplateFields


class TokenizeRequest(TemplateFields):
    """Body of /tokenize: a prompt, or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: Any = None
    tools: Any = None
    return_token_strs: bool = False


class DetokenizeRequest(RequestBody):
    """Body of /detokenize."""

    model: str | None = None
    tokens: list[int]
