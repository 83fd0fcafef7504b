"""/v1/messages: a conversation in Anthropic's form; and how many tokens its prompt has."""

from __future__ import annotations

import json
import uuid

from paged_backend.handlers.openai.anthropic_input import as_chat
from paged_backend.handlers.openai.anthropic_stream import MessageEvents, stop_of, usage_of
from paged_backend.handlers.openai.chat_job import shown_tools
from paged_backend.handlers.openai.generation import ServingContext
from paged_backend.handlers.openai.messages import parse_messages
from paged_backend.handlers.openai.parsing.events import Message as Said
from paged_backend.handlers.openai.parsing.events import ToolCall
from paged_backend.handlers.openai.protocol.anthropic import (
    CountTokensRequest,
    Message,
    MessagesRequest,
    TextBlock,
    ThinkingBlock,
    TokenCount,
    ToolUseBlock,
)
from paged_backend.handlers.openai.protocol.conversation import renamed
from paged_backend.handlers.openai.rendering import Rendering, render_messages
from paged_backend.handlers.openai.spoken import SpokenAnswer, submit_conversation
from paged_backend.handlers.openai.streaming import collect_all, stream_response
from paged_backend.handlers.openai.tools import parse_tools
from paged_backend.handlers.openai.wire import HttpResponse, json_response

ID_PREFIX = "msg"


async def create_message(context: ServingContext, request: MessagesRequest) -> HttpResponse:
    """Answers a conversation in Anthropic's form.

    Raises:
        PagedBackendError: whatever refuses it; nothing is left running.
    """
    chat, names = as_chat(request)
    message_id = f"{ID_PREFIX}_{request.request_id or uuid.uuid4().hex}"
    model = context.model_name(request.model)
    job, accepted = await submit_conversation(context, chat, names, message_id)
    answer = SpokenAnswer(job)
    if request.stream:
        return await stream_response(accepted, MessageEvents(message_id, model, answer))
    (output,) = await collect_all(accepted)
    said = answer.read_whole(output)
    reason, sequence = stop_of(answer)
    reply: Message = {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": _blocks(said),
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": usage_of(answer),
    }
    return json_response(reply)


async def count_message_tokens(context: ServingContext, request: CountTokensRequest) -> HttpResponse:
    """How many tokens the prompt of such a conversation has, also if it is too long for the model.

    Raises:
        PagedBackendError: whatever refuses it.
    """
    chat, names = as_chat(request)
    context.model_name(request.model)
    with renamed(names):
        messages = parse_messages(chat.messages, max_messages=context.engine.max_model_len)
        tools = shown_tools(context.engine.config.chat, parse_tools(chat.tools, chat.tool_choice))
        rendered = await render_messages(context.engine, messages, Rendering.of(chat, tools), must_fit=False)
    reply: TokenCount = {"input_tokens": len(rendered.token_ids)}
    return json_response(reply)


def _blocks(said: Said) -> list[TextBlock | ThinkingBlock | ToolUseBlock]:
    """The blocks of a whole message. One that says nothing at all still has a text, an empty one."""
    blocks: list[TextBlock | ThinkingBlock | ToolUseBlock] = []
    if said.reasoning is not None:
        blocks.append({"type": "thinking", "thinking": said.reasoning, "signature": ""})
    if said.content is not None or not (blocks or said.tool_calls):
        blocks.append({"type": "text", "text": said.content or "", "citations": None})
    return [*blocks, *map(_tool_use, said.tool_calls)]


def _tool_use(call: ToolCall) -> ToolUseBlock:
    """A call; one that was cut short has no arguments."""
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        arguments = None
    return {
        "type": "tool_use",
        "id": call.id,
        "name": call.name,
        "input": arguments if isinstance(arguments, dict) else {},
    }
