"""Bodies of /tokenize and /detokenize."""

from __future__ import annotations

from typing import Any

from paged_backend.handlers.openai.protocol.base import RequestBody


class TokenizeRequest(RequestBody):
    """Body of /tokenize: a prompt, or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: Any = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool = False


class DetokenizeRequest(RequestBody):
    """Body of /detokenize."""

    model: str | None = None
    tokens: list[int]
