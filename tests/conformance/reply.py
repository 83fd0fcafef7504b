"""An answer. A stream is read into the form of the whole answer, so that both are checked alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reply:
    """An answer, read to its end.

    Attributes:
        content_type: without its parameters.
    """

    status: int
    content_type: str
    body: bytes

    @property
    def streamed(self) -> bool:
        return self.content_type == "text/event-stream"

    @property
    def json(self) -> Any:
        """The body of an answer that is not streamed."""
        assert self.content_type == "application/json", self
        return json.loads(self.body)

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """A stream's chunks; that it is framed as it must be, ends as it must, and is one response, is checked."""
        assert self.streamed, self
        *frames, done, rest = self.body.decode().split("\n\n")
        assert (done, rest) == ("data: [DONE]", ""), self.body[-200:]
        assert all(frame.startswith("data: {") and "\n" not in frame for frame in frames)
        chunks = [json.loads(frame.removeprefix("data: ")) for frame in frames]
        for name in ("id", "object", "created", "model"):
            assert len({chunk[name] for chunk in chunks}) == 1, name
        return chunks

    @property
    def events(self) -> list[dict[str, Any]]:
        """A stream's events, which say twice what they are; that both say the same is checked."""
        assert self.streamed, self
        *frames, rest = self.body.decode().split("\n\n")
        assert not rest, self.body[-200:]
        lines = [frame.split("\n") for frame in frames]
        events = [json.loads(data.removeprefix("data: ")) for _, data in lines]
        assert [name for name, _ in lines] == [f"event: {event['type']}" for event in events]
        return events

    @property
    def answer(self) -> dict[str, Any]:
        """The whole answer, of a stream what its chunks or events give together."""
        if not self.streamed:
            return self.json
        if not self.body.startswith(b"event: "):
            return whole_of(self.chunks)
        events = self.events
        return events[-1]["response"] if "response" in events[-1] else message_of(events)

    @property
    def told(self) -> dict[str, Any]:
        """What every server must tell alike."""
        return {"status": self.status, "content type": self.content_type, "body": comparable(self.answer)}


def text_of(choice: Mapping[str, Any]) -> str:
    """A choice's text, on whichever route."""
    return choice["text"] if "text" in choice else choice["message"].get("content") or ""


def whole_of(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """A whole answer out of a stream's chunks: texts and lists are joined, the last of anything else counts."""
    choices: dict[int, dict[str, Any]] = {}
    answer: dict[str, Any] = {}
    for chunk in chunks:
        answer |= {name: value for name, value in chunk.items() if name != "choices" and value is not None}
        for part in chunk["choices"]:
            part = dict(part)
            choice = choices.setdefault(part["index"], {})
            if "delta" in part:
                _join(choice.setdefault("message", {}), part.pop("delta"))
            index, reason = part.pop("index"), part.pop("finish_reason", None)
            _join(choice, part)
            choice["index"] = index
            if reason is not None:
                assert "finish_reason" not in choice, "a choice that ended twice"
                choice["finish_reason"] = reason
    return {**answer, "choices": [choices[index] for index in sorted(choices)]}


def message_of(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Anthropic's message out of the events of its stream."""
    message: dict[str, Any] = {}
    arguments: list[str] = []
    for event in events:
        match event["type"]:
            case "message_start":
                message = {**event["message"], "content": []}
            case "content_block_start":
                assert event["index"] == len(message["content"])
                message["content"].append(dict(event["content_block"]))
                arguments = []
            case "content_block_delta":
                block, delta = message["content"][event["index"]], event["delta"]
                arguments.append(delta.get("partial_json", ""))
                for name in ("text", "thinking", "signature"):
                    if name in delta:
                        block[name] += delta[name]
            case "content_block_stop":
                if message["content"][event["index"]]["type"] == "tool_use":
                    message["content"][event["index"]]["input"] = json.loads("".join(arguments) or "{}")
            case "message_delta":
                message |= event["delta"]
                message["usage"] = {**message["usage"], **event["usage"]}
            case kind:
                assert kind in ("message_stop", "ping"), kind
    return message


def said_in(answer: Mapping[str, Any]) -> list[Any]:
    """What the model said, on whichever route: choices, output items or blocks."""
    return next(answer[name] for name in ("choices", "output", "content") if name in answer)


def texts_of(answer: Mapping[str, Any]) -> list[str]:
    """The text of each choice; responses and messages have one."""
    if "choices" in answer:
        return [text_of(choice) for choice in answer["choices"]]
    if "output" in answer:
        parts = [part for item in answer["output"] if item["type"] == "message" for part in item["content"]]
        return ["".join(part["text"] for part in parts)]
    return ["".join(block["text"] for block in answer["content"] if block["type"] == "text")]


def _join(into: dict[str, Any], part: Mapping[str, Any]) -> None:
    for name, value in part.items():
        known = into.get(name)
        if name == "role":
            into[name] = value
        elif name == "tool_calls" and value:
            calls = into.setdefault(name, [])
            for call in value:
                call = dict(call)
                if call.pop("index") == len(calls):
                    calls.append({})
                _join(calls[-1], call)
        elif isinstance(known, dict) and isinstance(value, Mapping):
            _join(known, value)
        elif isinstance(known, (str, list)) and isinstance(value, type(known)):
            into[name] = known + value
        elif value is not None or name not in into:
            into[name] = dict(value) if isinstance(value, Mapping) else value


_VARYING = frozenset(
    "id call_id item_id created created_at completed_at object prompt_tokens_details input_tokens_details "
    "cache_read_input_tokens receipts".split()
)


def comparable(value: Any) -> Any:
    """An answer without what may differ between two of the same request: what says when it was, which of many it was,
    what was in the cache, and what is null or empty and may as well be absent."""
    if isinstance(value, list):
        return [comparable(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    kept = {name: comparable(item) for name, item in value.items() if name not in _VARYING}
    if isinstance(value.get("cache_read_input_tokens"), int):  # Anthropic counts apart what the cache had
        kept["input_tokens"] = value["input_tokens"] + value["cache_read_input_tokens"]
    return {name: item for name, item in kept.items() if item is not None and item != "" and item != []}
