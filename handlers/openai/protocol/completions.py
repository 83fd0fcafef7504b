"""Body of /v1/completions."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Any

from pydantic import WithJsonSchema

from paged_backend.handlers.openai.protocol.base import Refusal
from paged_backend.handlers.openai.protocol.generation import GenerationRequest

_TOKEN_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        _TOKEN_IDS,
        {"type": "array", "items": _TOKEN_IDS, "minItems": 1},
    ]
}
"""What `parse_prompts` takes."""


class CompletionRequest(GenerationRequest):
    """Body of /v1/completions. `prompt` is checked where it is encoded."""

    prompt: Annotated[Any, WithJsonSchema(PROMPT_SCHEMA)]
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
