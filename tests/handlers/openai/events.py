"""Streams of named events, read as they are."""

from __future__ import annotations

import json
from typing import Any


def events_of(reply: Any) -> list[dict[str, Any]]:
    """The data of a stream's events, each of which must bear its type as its name."""
    assert reply.status == 200 and reply.headers["Content-Type"].startswith("text/event-stream")
    events = []
    *frames, rest = reply.body.decode().split("\n\n")
    assert rest == ""
    for frame in frames:
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events
