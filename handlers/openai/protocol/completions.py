"""Body of /v1/completions."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from paged_backend.handlers.openai.protocol.base import Refusal
from paged_backend.handlers.openai.protocol.generation import GenerationRequest


class CompletionRequest(GenerationRequest):
    """Body of /v1/completions. `prompt` is checked where it is encoded."""

    prompt: Any
    echo: bool = False
    logprobs: int | None = None

    unsupported = MappingProxyType(
        {
            **GenerationRequest.unsupported,
            "prompt_embeds": Refusal("send text or token ids as the prompt"),
            "thinking_token_budget": Refusal("bound the whole output with max_tokens"),
            "suffix": Refusal("models here continue a text, they do not fill it in", ("",)),
        }
    )
