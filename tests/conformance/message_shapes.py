"""What answers of /v1/messages must look like."""

from __future__ import annotations

import re
from typing import Any

from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from tests.conformance.case import MODEL
from tests.conformance.exchange import Exchange
from tests.conformance.reply import comparable

_EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


def check(exchange: Exchange) -> None:
    """The form of a message."""
    body, answer = exchange.body, exchange.answer
    Message.model_validate(answer)
    own = body.get("request_id")
    assert re.fullmatch(f"msg_{own}" if own else "msg_[0-9a-f]{32}", answer["id"])
    assert answer["model"] == (body.get("model") or MODEL)
    reasons = ["end_turn", "max_tokens", "tool_use"] + (["stop_sequence"] if body.get("stop_sequences") else [])
    assert answer["stop_reason"] in reasons
    assert (answer["stop_sequence"] is None) == (answer["stop_reason"] != "stop_sequence")
    assert answer["usage"]["output_tokens"] <= body["max_tokens"]
    if exchange.reply.streamed:
        _check_events(exchange, answer)


def _check_events(exchange: Exchange, answer: dict[str, Any]) -> None:
    """Blocks begin and end one after another, between the message's start and its end."""
    # Anthropic: there may be pings anywhere.
    events = [event for event in exchange.reply.events if event["type"] != "ping"]
    for event in events:
        _EVENT.validate_python(event)
    kinds = [event["type"] for event in events]
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    started = events[0]["message"]
    assert started["content"] == [] and started["stop_reason"] is None
    current = None
    for event in events[1:-2]:
        match event["type"]:
            case "content_block_start":
                assert current is None
                current = event["index"]
            case "content_block_delta":
                assert event["index"] == current
            case "content_block_stop":
                assert event["index"] == current
                current = None
    assert current is None
    whole = exchange.asked(stream=None).answer
    assert comparable(answer) == comparable(whole)
