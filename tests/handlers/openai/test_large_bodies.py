"""Bodies that are large where they should be small: what is wrong with them is found at once, or beside the loop.

No time is measured: what is counted is what grows with the body.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from paged_backend.errors import InvalidRequestError
from paged_backend.handlers.openai.protocol.base import nested_bodies
from paged_backend.handlers.openai.protocol.conversation import renamed
from paged_backend.handlers.openai.routes import ROUTES
from paged_backend.handlers.openai.tools import parse_tools

from .conftest import FakeClient, FakeTokenizer, Reply

CHAT = "/v1/chat/completions"
MANY = 5000
WRONG = object()  # of no type that JSON has
FIELDS = [
    (route.body, name)
    for route in ROUTES
    if route.body is not None
    for name in route.body.model_fields
    if name not in nested_bodies(route.body)  # whose names are looked at before
]


@pytest.mark.parametrize("value", [[WRONG] * MANY, dict.fromkeys(map(str, range(MANY)), WRONG)], ids=["list", "dict"])
@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=lambda part: part if isinstance(part, str) else part.__name__)
def test_not_every_wrong_item_is_told(kind: Any, name: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate({kind.model_fields[name].alias or name: value, "an unknown field": 1})
    assert caught.value.error_count() < MANY / 2


def test_a_large_object_is_taken_whole(call: Callable[..., Reply], client: FakeClient) -> None:
    biases = {str(token): token / 1e4 for token in range(2500)}
    reply = call(CHAT, {"messages": [{"role": "user", "content": "yo"}], "logit_bias": biases})
    assert reply.status == 200
    assert client.submissions[0]["params"].logit_bias == {int(token): bias for token, bias in biases.items()}


def test_a_fault_far_down_a_large_object_is_named(call: Callable[..., Reply]) -> None:
    biases = {**dict.fromkeys(map(str, range(2500)), 1.0), "2500": "x"}
    reply = call(CHAT, {"messages": [{"role": "user", "content": "yo"}], "logit_bias": biases})
    assert reply.error["param"] == "body.logit_bias.2500"


def test_an_unknown_name_is_not_repeated_whole(call: Callable[..., Reply]) -> None:
    reply = call(CHAT, {"messages": [], "x" * 100_000: 1})
    assert reply.status == 400 and len(reply.error["message"]) < 5000


def test_names_of_tools_are_compared_once_each() -> None:
    class Name(str):
        num_compared = 0

        def __eq__(self, other: object) -> bool:
            Name.num_compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    tools = [{"type": "function", "function": {"name": Name(f"f{number}")}} for number in range(1000)]
    assert len(parse_tools(tools, "auto").tools) == 1000
    assert Name.num_compared < 3000
    with pytest.raises(InvalidRequestError, match="two functions 'f7'") as caught:
        parse_tools([*tools, tools[7]], "auto")
    assert caught.value.param == "tools.1000.function.name"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("messages.3.content.0.text must be a string.", "input.5.content.0.text must be a string."),
        ("body.messages.3", "body.input.5"),
        ("messages.33 and messages", "input.33 and input"),
        ("tools.0.function.parameters.type", "tools.0.input_schema.type"),
        ("the_messages, or messages_too, or my.messages.3", "the_messages, or messages_too, or my.messages.3"),
        ("a.b.c.d.e.f.g.messages", "a.b.c.d.e.f.g.messages"),
    ],
)
def test_places_are_told_in_the_words_of_the_body(said: str, told: str) -> None:
    names = {
        "messages.3": "input.5",
        "messages": "input",
        "tools.0.function": "tools.0",
        "tools.0.function.parameters": "tools.0.input_schema",
    }
    with pytest.raises(InvalidRequestError) as caught, renamed(names):
        raise InvalidRequestError(said, param=said)
    assert (str(caught.value), caught.value.param) == (told, told)


LONG = "x" * 50_000
CALLS = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]


@pytest.mark.parametrize(
    ("message", "inline"),
    [
        ({"content": "yo"}, True),
        ({"content": LONG}, False),
        ({"content": "yo", "reasoning": LONG}, False),
        ({"content": "yo", "name": LONG}, False),
        ({"content": "yo", "tool_calls": CALLS}, False),
    ],
)
def test_a_long_message_is_rendered_beside_the_loop(
    call: Callable[..., Reply], client: FakeClient, monkeypatch: pytest.MonkeyPatch, message: Any, inline: bool
) -> None:
    threads = []
    rendered = FakeTokenizer.apply_chat_template

    def render(*args: Any, **arguments: Any) -> str:
        threads.append(threading.get_ident())
        return rendered(*args, **arguments)

    monkeypatch.setattr(FakeTokenizer, "apply_chat_template", render)
    client.max_model_len = 100_000
    reply = call(CHAT, {"messages": [{"role": "assistant", **message}]})
    assert reply.status == 200
    assert (threads == [threading.get_ident()]) is inline
