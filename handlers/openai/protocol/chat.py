"""Body of /v1/chat/completions."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from paged_backend.handlers.openai.protocol.base import Refusal
from paged_backend.handlers.openai.protocol.generation import GenerationRequest


class ChatRequest(GenerationRequest):
    """Body of /v1/chat/completions. `messages` are checked where they are rendered."""

    messages: Any
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None

    unsupported = MappingProxyType(
        {
            **GenerationRequest.unsupported,
            "audio": Refusal("this model reads and writes text only"),
            "chat_template": Refusal("the model's own template is used"),
            "documents": Refusal("put them into a message", ([],)),
            "echo": Refusal("the prompt is not repeated in chats", (False,)),
            "function_call": Refusal("leave it out", ("none",)),
            "functions": Refusal("leave it out", ([],)),
            "include_reasoning": Refusal("leave it out", (True,)),
            "media_io_kwargs": Refusal("this model reads and writes text only", ({},)),
            "mm_processor_kwargs": Refusal("this model reads and writes text only", ({},)),
            "modalities": Refusal("this model reads and writes text only", (["text"],)),
            "reasoning_effort": Refusal("leave it out"),
            "return_prompt_text": Refusal("leave it out", (False,)),
            "tool_choice": Refusal("leave it out", ("none",)),
            "tools": Refusal("leave it out", ([],)),
            "verbosity": Refusal("leave it out", ("medium",)),
            "web_search_options": Refusal("nothing here searches the web"),
        }
    )
