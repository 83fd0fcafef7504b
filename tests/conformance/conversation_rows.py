"""/v1/responses and /v1/messages: their own fields, and those that they share with the chat."""

from __future__ import annotations

from typing import Any

from tests.conformance.case import (
    CHAT,
    COUNT,
    MESSAGES,
    RESPONSES,
    Case,
    accepted,
    refused,
    streamed,
    whole,
    wrong_types,
)
from tests.conformance.checks import differs_from, same_as, says_as_chat, wrote
from tests.conformance.exchange import Exchange

_ON_RESPONSES, _ON_MESSAGES = (RESPONSES,), (MESSAGES,)
_ALL = (RESPONSES, MESSAGES)
_TELL = "Tell me a short story."
_SAID = {"role": "user", "content": _TELL}
_SYSTEM = {"role": "system", "content": "Be brief."}

_RESPONSES = [
    *accepted("input", _TELL, says_as_chat(_SAID), on=_ON_RESPONSES),
    *accepted("input", [_SAID], same_as(input=_TELL), on=_ON_RESPONSES),
    *accepted("input", [{"type": "message", **_SAID}], same_as(input=_TELL), on=_ON_RESPONSES),
    *accepted(
        "input",
        [{"role": "user", "content": [{"type": "input_text", "text": _TELL}]}],
        same_as(input=_TELL),
        on=_ON_RESPONSES,
    ),
    *accepted(
        "input",
        [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}, _SAID],
        says_as_chat({"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}, _SAID),
        on=_ON_RESPONSES,
    ),
    *accepted("instructions", "Be brief.", says_as_chat(_SYSTEM, _SAID), on=_ON_RESPONSES),
    *accepted("max_output_tokens", 1, wrote(1), on=_ON_RESPONSES),
    *accepted("max_output_tokens", 3, wrote(3), on=_ON_RESPONSES),
    *accepted("max_output_tokens", None, on=_ON_RESPONSES, input="What is the opposite of hot?"),
    *accepted("metadata", {"a": "b"}, same_as(metadata=None), on=_ON_RESPONSES),
    *accepted("store", True, same_as(store=None), on=_ON_RESPONSES),
    *accepted("truncation", "auto", same_as(truncation=None), on=_ON_RESPONSES),
    *accepted("truncation", "disabled", same_as(truncation=None), on=_ON_RESPONSES),
    *accepted("text", {"format": {"type": "text"}}, same_as(text=None), on=_ON_RESPONSES),
    *accepted("include", ["message.output_text.logprobs"], on=_ON_RESPONSES),
    *accepted("include", ["message.output_text.logprobs"], top_logprobs=3, on=_ON_RESPONSES),
    *accepted("include", [], same_as(include=None), on=_ON_RESPONSES),
    *accepted("user", "somebody", same_as(user=None), on=_ON_RESPONSES),
    *accepted("service_tier", "auto", same_as(service_tier=None), on=_ON_RESPONSES),
    *streamed(accepted("stream_options", {"include_obfuscation": False}, on=_ON_RESPONSES)),
    *whole(refused("stream_options", {"include_obfuscation": False}, on=_ON_RESPONSES)),
    *refused("input", [], on=_ON_RESPONSES),
    *refused("input", [{"role": "wizard", "content": "x"}], "input.0.role", on=_ON_RESPONSES),
    *refused("input", [{"type": "item_reference", "id": "x"}], "input.0.type", on=_ON_RESPONSES),
    *refused("previous_response_id", "resp_1", on=_ON_RESPONSES),
    *refused("max_output_tokens", 0, on=_ON_RESPONSES),
    *refused("max_output_tokens", 10**6, on=_ON_RESPONSES),
    *refused("max_tokens", 5, on=_ON_RESPONSES),
    *refused("messages", [_SAID], on=_ON_RESPONSES),
    *refused("background", True, on=_ON_RESPONSES),
    *refused("top_logprobs", 21, on=_ON_RESPONSES),
    *refused("include", ["everything"], "include.0", on=_ON_RESPONSES),
    *wrong_types("input", 5, None, on=_ON_RESPONSES),
    *wrong_types("max_output_tokens", "5", 1.5, on=_ON_RESPONSES),
    *wrong_types("instructions", 5, on=_ON_RESPONSES),
    *wrong_types("truncation", "some", on=_ON_RESPONSES),
    *wrong_types("include", "logprobs", on=_ON_RESPONSES),
]

_MESSAGES = [
    *accepted("messages", [_SAID], says_as_chat(_SAID), on=_ON_MESSAGES),
    *accepted(
        "messages",
        [{"role": "user", "content": [{"type": "text", "text": _TELL}]}],
        same_as(messages=[_SAID]),
        on=_ON_MESSAGES,
    ),
    *accepted("system", "Be brief.", says_as_chat(_SYSTEM, _SAID), on=_ON_MESSAGES),
    *accepted("system", [{"type": "text", "text": "Be brief."}], same_as(system="Be brief."), on=_ON_MESSAGES),
    *accepted("max_tokens", 1, wrote(1), on=_ON_MESSAGES),
    *accepted("max_tokens", 3, wrote(3), on=_ON_MESSAGES),
    *accepted("stop_sequences", ["#never#"], same_as(stop_sequences=None), on=_ON_MESSAGES),
    *accepted("stop_sequences", ["e"], max_tokens=40, on=_ON_MESSAGES),
    *accepted("metadata", {"user_id": "x"}, same_as(metadata=None), on=_ON_MESSAGES),
    *accepted("thinking", {"type": "disabled"}, same_as(thinking=None), on=_ON_MESSAGES),
    *refused("messages", [], on=_ON_MESSAGES),
    *refused("messages", [{"role": "wizard", "content": "x"}], on=_ON_MESSAGES),
    *refused("messages", [{"role": "user", "content": [{"type": "image", "source": {}}]}], on=_ON_MESSAGES),
    *refused("max_tokens", 0, on=_ON_MESSAGES),
    *refused("max_tokens", 10**6, on=_ON_MESSAGES),
    *refused("stop_sequences", list("abcde"), on=_ON_MESSAGES),
    *refused("stop", "e", on=_ON_MESSAGES),
    *refused("n", 2, on=_ON_MESSAGES),
    *wrong_types("max_tokens", "5", None, on=_ON_MESSAGES),
    *wrong_types("messages", "x", 5, None, on=_ON_MESSAGES),
    *wrong_types("system", 5, on=_ON_MESSAGES),
    *wrong_types("thinking", {"type": "deep"}, on=_ON_MESSAGES),
]

_SHARED = [
    *accepted("temperature", 0.9, differs_from(temperature=0), seed=7, max_output_tokens=20, on=_ON_RESPONSES),
    *accepted("temperature", 0.9, seed=7, on=_ON_MESSAGES),
    *accepted("top_p", 0.5, temperature=0.9, seed=7, on=_ALL),
    *accepted("top_k", 1, same_as(temperature=0, top_k=None, seed=None), temperature=0.9, seed=7, on=_ALL),
    *whole(accepted("request_id", "my-own", on=_ALL)),
    *streamed(accepted("request_id", "my-own, streamed", on=_ALL)),
    *accepted("cache_salt", "salt", same_as(cache_salt=None), on=_ALL),
    *accepted("model", None, on=_ALL),
    *refused("temperature", -1, on=_ALL),
    *refused("top_p", 0, on=_ALL),
    *refused("temprature", 1, on=_ALL),
    *wrong_types("temperature", "hot", [1], on=_ALL),
    *wrong_types("stream", "yes", on=_ALL),
]


def _counts_what_chat_counts(exchange: Exchange) -> None:
    chat = exchange.caller.ask("POST", CHAT, {"messages": exchange.body["messages"], "max_tokens": 1})
    assert exchange.json == {"input_tokens": chat.json["usage"]["prompt_tokens"]}


def _count(status: int = 200, *checks: Any, **body: Any) -> Case:
    return Case(f"{COUNT} {body}"[:90], COUNT, {"messages": [_SAID], **body}, status=status, checks=checks)


_COUNTS = [
    _count(200, _counts_what_chat_counts),
    _count(200, _counts_what_chat_counts, messages=[{"role": "user", "content": "Grüße 🦊"}]),
    _count(400, messages=[]),
    _count(400, messages=5),
    _count(404, model="other"),
    *(
        Case(f"{path} of no such model", path, {"model": "other", **body}, status=404, param="model")
        for path, body in ((RESPONSES, {"input": "x"}), (MESSAGES, {"messages": [_SAID], "max_tokens": 5}))
    ),
    *(
        Case(f"{path} {name}", path, content, status=400, param="body")
        for path in (RESPONSES, MESSAGES, COUNT)
        for name, content in (("malformed", b"{"), ("a list", [1]), ("nothing", b""))
    ),
]


def _nothing_to_end(exchange: Exchange) -> None:
    assert exchange.json == {"object": "cancellation", "cancelled": False, "ids": []}


_CANCEL = [
    Case(
        f"cancel {body}",
        "/v1/cancel",
        body,
        checks=(_nothing_to_end,),
    )
    for body in ({"id": "chatcmpl-unknown"}, {"request_id": "unknown"})
] + [
    Case(f"cancel {body}", "/v1/cancel", body, status=400, param=param)
    for body, param in (
        ({}, "id"),
        ({"id": "a", "request_id": "b"}, "id"),
        ({"id": 5}, "body.id"),
        ({"ids": ["a"]}, "ids"),
    )
]


ROWS = [*_RESPONSES, *_MESSAGES, *_SHARED, *_COUNTS, *_CANCEL]
