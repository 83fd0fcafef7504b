"""What a response of /v1/responses holds: its output's items, its usage, and the response around them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from paged_backend.handlers.openai.parsing.events import CallBroken, Content, Message, Reasoning
from paged_backend.handlers.openai.protocol.replies import TokenLogprob
from paged_backend.handlers.openai.protocol.responses import (
    ItemStatus,
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputText,
    Response,
    ResponseFormat,
    ResponsesRequest,
    ResponseUsage,
)
from paged_backend.handlers.openai.streaming import UsageTally
from paged_backend.sampling_params import SamplingParams

ID_PREFIX = "resp"


def output_text(text: str, logprobs: Sequence[TokenLogprob]) -> OutputText:
    """A message's one part."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def output_message(item_id: str, status: ItemStatus, parts: Sequence[OutputText]) -> OutputMessage:
    """What was said."""
    return {"id": item_id, "type": "message", "role": "assistant", "status": status, "content": list(parts)}


def output_reasoning(item_id: str, status: ItemStatus, texts: Sequence[str]) -> OutputReasoning:
    """What was thought."""
    return {
        "id": item_id,
        "type": "reasoning",
        "status": status,
        "summary": [],
        "content": [{"type": "reasoning_text", "text": text} for text in texts],
        "encrypted_content": None,
    }


def output_call(item_id: str, status: ItemStatus, call_id: str, name: str, arguments: str) -> OutputCall:
    """What was called."""
    return {
        "id": item_id,
        "type": "function_call",
        "status": status,
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
    }


def item_id(kind: str, response_id: str, output_index: int) -> str:
    """An item's id: `kind` is "msg", "rs" or "fc"."""
    return f"{kind}_{response_id.removeprefix(f'{ID_PREFIX}_')}_{output_index}"


def output_items(
    message: Message, response_id: str, logprobs: Sequence[TokenLogprob], *, complete: bool
) -> list[OutputItem]:
    """The items of a whole message. One that says nothing at all still has a message, an empty one.

    Args:
        complete: whether the output came to its own end; if not, what it ended with is incomplete.
    """
    items: list[OutputItem] = []
    if message.reasoning is not None:
        status = item_status(complete or message.last is not Reasoning)
        items.append(output_reasoning(item_id("rs", response_id, 0), status, [message.reasoning]))
    if message.content is not None or not (items or message.tool_calls):
        status = item_status(complete or message.last not in (Content, CallBroken, None))
        text = output_text(message.content or "", logprobs)
        items.append(output_message(item_id("msg", response_id, len(items)), status, [text]))
    for call in message.tool_calls:
        name = item_id("fc", response_id, len(items))
        items.append(output_call(name, item_status(call.complete), call.id, call.name, call.arguments))
    return items


def item_status(complete: bool) -> ItemStatus:
    """What an item that is over is called."""
    return "completed" if complete else "incomplete"


def usage_of(tally: UsageTally) -> ResponseUsage:
    """The tokens, in this route's words."""
    usage = tally.body()
    told: ResponseUsage = {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {
            "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
            "cache_write_tokens": 0,
        },
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": tally.num_reasoning_tokens or 0},
        "total_tokens": usage["total_tokens"],
    }
    if "receipts" in usage:
        told["receipts"] = usage["receipts"]
    return told


@dataclass(frozen=True, slots=True)
class ResponseFrame:
    """What every state of one response has in common: its name, and what was asked for.

    Attributes:
        created: seconds since 1970.
        params: what the engine was asked for, defaults filled in.
    """

    id: str
    created: int
    model: str
    request: ResponsesRequest
    params: SamplingParams

    def in_progress(self) -> Response:
        """The response as its stream begins."""
        return self._response("in_progress", [], None)

    def ended(self, finish_reason: str | None, output: Sequence[OutputItem], tally: UsageTally) -> Response:
        """The response at its end, however it came."""
        status = {"length": "incomplete", "abort": "cancelled"}.get(finish_reason or "", "completed")
        response = self._response(status, output, usage_of(tally))
        if status == "incomplete":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        return response

    def failed(self, message: str, output: Sequence[OutputItem]) -> Response:
        """The response that a fault has ended."""
        response = self._response("failed", output, None)
        response["error"] = {"code": "server_error", "message": message}
        return response

    def _response(self, status: Any, output: Sequence[OutputItem], usage: ResponseUsage | None) -> Response:
        request = self.request
        reasoning = request.reasoning
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "max_tool_calls": None,
            "metadata": request.metadata or {},
            "model": self.model,
            "output": list(output),
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {
                "effort": None if reasoning is None else reasoning.effort,
                "summary": None if reasoning is None else reasoning.summary or reasoning.generate_summary,
            },
            "service_tier": "default",
            "store": False,
            "temperature": self.params.temperature,
            "text": {"format": _format(request)},
            "tool_choice": request.tool_choice or "auto",
            "tools": request.tools or [],
            "top_logprobs": request.top_logprobs or 0,
            "top_p": self.params.top_p,
            "truncation": request.truncation or "disabled",
            "usage": usage,
            "user": request.user,
        }


def _format(request: ResponsesRequest) -> ResponseFormat:
    form = None if request.text is None else request.text.format
    if form is None or form.type != "json_schema" or form.schema_ is None:
        return {"type": "text" if form is None else form.type}
    return {
        "type": "json_schema",
        "name": form.name or "",
        "description": form.description,
        "schema": form.schema_,
        "strict": form.strict,
    }
