"""The events of a streamed message of /v1/messages, in Anthropic's order."""

from __future__ import annotations

from typing import Any

from paged_backend.handlers.openai.errors import anthropic_stream_error_body
from paged_backend.handlers.openai.parsing.events import (
    CallArguments,
    CallBegin,
    CallBroken,
    CallEnd,
    Content,
    Event,
    Reasoning,
)
from paged_backend.handlers.openai.protocol.anthropic import MessageUsage, StopReason
from paged_backend.handlers.openai.spoken import SpokenAnswer
from paged_backend.handlers.openai.wire import named_event
from paged_backend.outputs import RequestDelta


class MessageEvents:
    """Writes one message's events."""

    def __init__(self, message_id: str, model: str, answer: SpokenAnswer) -> None:
        self._id = message_id
        self._model = model
        self._answer = answer
        self._begun = False
        self._num_blocks = 0
        self._block: str | None = None  # the type of the one that is open
        self._written: list[bytes] = []

    def frames(self, prompt_index: int, delta: RequestDelta) -> bytes:
        """What a step has brought, as events; the first begin with the message itself."""
        events = self._answer.read(delta)
        if not self._begun:
            self._begun = True
            usage = {**usage_of(self._answer), "output_tokens": 0}
            usage.pop("receipts", None)  # of an answer that is over at once
            fields = {"id": self._id, "type": "message", "role": "assistant", "model": self._model, "content": []}
            self._write("message_start", message={**fields, "stop_reason": None, "stop_sequence": None, "usage": usage})
            self._write("ping")
        for event in events:
            self._tell(event)
        return self._flush()

    def end(self) -> bytes:
        """The last block's end, and why the message ended."""
        if not self._num_blocks:
            self._open("text", text="", citations=None)
        self._close()
        reason, sequence = stop_of(self._answer)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        self._write("message_delta", delta=delta, usage=usage_of(self._answer))
        self._write("message_stop")
        return self._flush()

    def failure(self, error: Exception) -> bytes:
        """What went wrong."""
        self._written.append(named_event("error", anthropic_stream_error_body(error)))
        return self._flush()

    def _tell(self, event: Event) -> None:
        match event:
            case Content(text):
                self._ensure("text", text="", citations=None)
                self._add("text_delta", text=text)
            case Reasoning(text):
                self._ensure("thinking", thinking="", signature="")
                self._add("thinking_delta", thinking=text)
            case CallBegin(_, call_id, name):
                self._open("tool_use", id=call_id, name=name, input={})
            case CallArguments(_, text):
                self._add("input_json_delta", partial_json=text)
            case CallEnd() | CallBroken():
                self._close()

    def _ensure(self, kind: str, **fields: Any) -> None:
        if self._block != kind:
            self._open(kind, **fields)

    def _open(self, kind: str, **fields: Any) -> None:
        self._close()
        self._block = kind
        self._num_blocks += 1
        self._write("content_block_start", index=self._num_blocks - 1, content_block={"type": kind, **fields})

    def _add(self, kind: str, **fields: Any) -> None:
        self._write("content_block_delta", index=self._num_blocks - 1, delta={"type": kind, **fields})

    def _close(self) -> None:
        if self._block is not None:
            self._block = None
            self._write("content_block_stop", index=self._num_blocks - 1)

    def _write(self, kind: str, **fields: Any) -> None:
        self._written.append(named_event(kind, {"type": kind, **fields}))

    def _flush(self) -> bytes:
        written = b"".join(self._written)
        self._written.clear()
        return written


def usage_of(answer: SpokenAnswer) -> MessageUsage:
    """The tokens, in this route's words: those that the cache had are no part of `input_tokens`."""
    usage = answer.tally.body()
    num_cached = usage["prompt_tokens_details"]["cached_tokens"]
    told: MessageUsage = {
        "input_tokens": usage["prompt_tokens"] - num_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": num_cached,
        "output_tokens": usage["completion_tokens"],
    }
    if "receipts" in usage:
        told["receipts"] = usage["receipts"]
    return told


def stop_of(answer: SpokenAnswer) -> tuple[StopReason, str | None]:
    """Why a message ended, and the stop sequence that ended it."""
    match answer.finish_reason:
        case "length":
            return "max_tokens", None
        case "abort":
            return "pause_turn", None
        case _ if answer.has_calls:
            # Also where tool_choice has named the tool, which the chat's own route calls "stop".
            return "tool_use", None
        case _:
            sequence = answer.stop_reason if isinstance(answer.stop_reason, str) else None
            return "end_turn" if sequence is None else "stop_sequence", sequence
