"""What answers of /v1/responses must look like."""

from __future__ import annotations

import itertools
import re
import time
from typing import Any

from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.conformance.case import MODEL
from tests.conformance.exchange import Exchange
from tests.conformance.reply import comparable, texts_of

_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def check(exchange: Exchange) -> None:
    """The form of a response."""
    body, answer = exchange.body, exchange.answer
    Response.model_validate(answer)
    own = body.get("request_id")
    assert re.fullmatch(f"resp_{own}" if own else "resp_[0-9a-f]{32}", answer["id"])
    assert abs(answer["created_at"] - time.time()) < 3600
    assert answer["model"] == (body.get("model") or MODEL)
    assert answer["status"] in ("completed", "incomplete") and answer["error"] is None
    reason = {"reason": "max_output_tokens"} if answer["status"] == "incomplete" else None
    assert answer["incomplete_details"] == reason
    assert answer["output"] and len({item["id"] for item in answer["output"]}) == len(answer["output"])
    for name in ("instructions", "max_output_tokens", "metadata", "top_p"):
        if body.get(name) is not None:
            assert answer[name] == body[name]
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["output_tokens"] <= (body.get("max_output_tokens") or 2048)
    assert 0 <= usage["input_tokens_details"]["cached_tokens"] < usage["input_tokens"]
    if exchange.reply.streamed:
        _check_events(exchange, answer)


def _check_events(exchange: Exchange, answer: dict[str, Any]) -> None:
    """Events are numbered, begin and end what they tell of, and tell together what the whole response says."""
    events = exchange.reply.events
    for event in events:
        _EVENT.validate_python(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == f"response.{answer['status']}" and kinds.count(kinds[-1]) == 1
    assert (
        kinds.count("response.output_item.added") == kinds.count("response.output_item.done") == len(answer["output"])
    )
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == answer["output"]
    for index, item in enumerate(answer["output"]):
        mine = [event for event in events if event.get("output_index") == index]
        deltas = [event["delta"] for event in mine if event["type"] == "response.output_text.delta"]
        if item["type"] == "message":
            assert "".join(deltas) == "".join(part["text"] for part in item["content"])
            (text_done,) = (event for event in mine if event["type"] == "response.output_text.done")
            assert text_done["text"] == "".join(deltas)
    of_items = [event["output_index"] for event in events if "output_index" in event]
    assert [index for index, _ in itertools.groupby(of_items)] == list(range(len(answer["output"])))
    whole = exchange.asked(stream=None, stream_options=None).answer
    assert texts_of(answer) == texts_of(whole)
    assert comparable(answer) == comparable(whole)
