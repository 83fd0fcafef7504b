"""Body of /v1/chat/completions."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Any

from pydantic import WithJsonSchema

from paged_backend.handlers.openai.protocol.base import ListOf, ObjectOf, Refusal, RequestBody
from paged_backend.handlers.openai.protocol.chat_objects import MESSAGES_SCHEMA, TOOL_CHOICE_SCHEMA, TOOLS_SCHEMA
from paged_backend.handlers.openai.protocol.generation import GenerationRequest


class TemplateFields(RequestBody):
    """The fields that say how a conversation is written; /tokenize has them too."""

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: ListOf[ObjectOf[str]] | None = None
    reasoning_effort: str | None = None


class ChatRequest(GenerationRequest, TemplateFields):
    """Body of /v1/chat/completions. `messages` and `tools` are checked where they are read."""

    messages: Annotated[Any, WithJsonSchema(MESSAGES_SCHEMA)]
    echo: bool = False
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    tools: Annotated[Any, WithJsonSchema(TOOLS_SCHEMA)] = None
    tool_choice: Annotated[Any, WithJsonSchema(TOOL_CHOICE_SCHEMA)] = None
    parallel_tool_calls: bool = True
    include_reasoning: bool = True
    thinking_token_budget: int | None = None

    unsupported = MappingProxyType(
        {
            **GenerationRequest.unsupported,
            "audio": Refusal("this model reads and writes text only"),
            "function_call": Refusal("use tool_choice", ("none",)),
            "functions": Refusal("use tools", ([],)),
            "media_io_kwargs": Refusal("this model reads and writes text only", ({},)),
            "mm_processor_kwargs": Refusal("this model reads and writes text only", ({},)),
            "moderation": Refusal("leave it out"),
            "modalities": Refusal("this model reads and writes text only", (["text"],)),
            "return_prompt_text": Refusal("render the messages with /tokenize", (False,)),
            "verbosity": Refusal("no model here knows of it", ("medium",)),
            "web_search_options": Refusal("nothing here searches the web"),
        }
    )
