"""From checked messages to token ids, as a chat template writes them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from paged_backend.config import TEMPLATE_ARGUMENTS, unknown_name_message
from paged_backend.errors import InvalidRequestError
from paged_backend.handlers.openai.engine_port import EnginePort, TokenizerPort
from paged_backend.handlers.openai.prompts import INLINE_CHARACTERS, check_hope, require_tokenizer
from paged_backend.handlers.openai.protocol.base import check_text
from paged_backend.handlers.openai.protocol.chat import TemplateFields
from paged_backend.handlers.openai.tools import check_depth

_MESSAGE_CHARACTERS = 40
"""What a message costs beside its text, in characters: a template takes its time over empty ones too."""

_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_NO_THINKING = MappingProxyType({"enable_thinking": False, "thinking": False})
"""What templates call it, Qwen's and others, when nothing is to be reasoned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """How a conversation is to be written; the fields are the request's, under its names."""

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    chat_template: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    documents: Sequence[Mapping[str, str]] | None = None
    reasoning_effort: str | None = None

    @classmethod
    def of(cls, request: TemplateFields, tools: Sequence[Mapping[str, Any]] = ()) -> Rendering:
        """What a body asks for.

        Args:
            tools: those that the prompt shows.
        """
        return cls(
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            add_special_tokens=request.add_special_tokens is True,
            chat_template=request.chat_template,
            chat_template_kwargs=request.chat_template_kwargs,
            tools=tools,
            documents=request.documents,
            reasoning_effort=request.reasoning_effort,
        )

    def check(self, engine: EnginePort) -> None:
        """Checks what does not depend on the messages.

        Raises:
            InvalidRequestError: fields contradict each other, or the server's configuration.
        """
        if self.add_generation_prompt and self.continue_final_message:
            raise InvalidRequestError(
                "Cannot set both continue_final_message and add_generation_prompt to true: set the latter to "
                "false (it is true where it is not given).",
                param="continue_final_message",
            )
        if self.chat_template is not None and not engine.config.chat.trust_request_chat_template:
            raise InvalidRequestError(
                "This server takes no chat template from a request: leave chat_template out, or have its operator set "
                "trust_request_chat_template.",
                param="chat_template",
            )
        check_text(self.chat_template, "chat_template")
        for name in self.chat_template_kwargs or {}:
            if name in TEMPLATE_ARGUMENTS:
                raise InvalidRequestError(
                    f"chat_template_kwargs may set the template's own variables only, not {name!r}.",
                    param="chat_template_kwargs",
                )
        check_depth(self.chat_template_kwargs or {}, "chat_template_kwargs")
        if self.reasoning_effort not in (None, *_EFFORTS):
            raise InvalidRequestError(
                unknown_name_message("reasoning_effort", str(self.reasoning_effort), _EFFORTS), param="reasoning_effort"
            )

    def source(self, tokenizer: TokenizerPort) -> str:
        """The template that will be used.

        Raises:
            InvalidRequestError: there is none.
        """
        if self.chat_template is not None:
            return self.chat_template
        source = tokenizer.template_source(has_tools=bool(self.tools))
        if source is None:
            raise InvalidRequestError(
                "This model has no chat template: use /v1/completions, or put a chat_template.jinja into "
                "the model's folder.",
                param="messages",
            )
        return source

    def variables(self, defaults: Mapping[str, Any] | None) -> dict[str, Any]:
        """The template's variables beside the conversation; a request's own win over the server's defaults."""
        given: dict[str, Any] = dict(defaults or {})
        if self.reasoning_effort is not None:
            given["reasoning_effort"] = self.reasoning_effort
            if self.reasoning_effort == "none":
                given.update(_NO_THINKING)
        return {**given, **(self.chat_template_kwargs or {})}


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """A prompt. `text` is what the template wrote; `token_ids` are what the model gets."""

    text: str
    token_ids: list[int]


async def render_messages(
    engine: EnginePort, messages: Sequence[Mapping[str, Any]], rendering: Rendering, *, must_fit: bool
) -> RenderedChat:
    """The prompt of a conversation, without holding up the event loop.

    Args:
        messages: from `parse_messages`.
        must_fit: refuse what is too long for the model whatever its tokens are, before it is encoded.

    Raises:
        InvalidRequestError: no tokenizer, no template, or the template cannot render these messages.
    """
    tokenizer = require_tokenizer(engine, "messages")
    rendering.check(engine)
    source = rendering.source(tokenizer)
    if "developer" not in source:
        # Most models know the role by its older name; OpenAI renamed it.
        messages = [
            {**message, "role": "system"} if message["role"] == "developer" else message for message in messages
        ]
    variables = rendering.variables(engine.config.chat.default_chat_template_kwargs)

    def render() -> RenderedChat:
        text = tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=rendering.add_generation_prompt,
            continue_final_message=rendering.continue_final_message,
            chat_template=rendering.chat_template,
            tools=rendering.tools or None,
            documents=rendering.documents,
            **variables,
        )
        check_text(text, "messages")
        if must_fit:
            check_hope(text, tokenizer, engine.max_model_len, "messages")
        return RenderedChat(text, tokenizer.encode(text, rendering.add_special_tokens))

    num_characters = sum(map(_size, messages))
    has_more = rendering.tools or rendering.documents or rendering.chat_template or rendering.chat_template_kwargs
    return await asyncio.to_thread(render) if has_more or num_characters > INLINE_CHARACTERS else render()


def _size(message: Mapping[str, Any]) -> float:
    """How long a message is in characters; one with calls counts as endless, as nobody knows how they are written."""
    if "tool_calls" in message:
        return math.inf
    return _MESSAGE_CHARACTERS + sum(len(value) for value in message.values())
