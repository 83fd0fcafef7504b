"""Texts in, events out: what the parsers' tests have in common."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from paged_backend.handlers.openai.parsing.call_list import NamedCall, RequiredCalls
from paged_backend.handlers.openai.parsing.events import CallArguments, Content, Event, Message, Reasoning
from paged_backend.handlers.openai.parsing.message_parser import MessageParser
from paged_backend.handlers.openai.parsing.reasoning import ReasoningSplitter
from paged_backend.handlers.openai.parsing.styles import REASONING_PARSERS, TOOL_CALL_PARSERS


def parser(
    calls: str | None = None, reasoning: str | None = None, *, is_open: bool | None = None, single_call: bool = False
) -> MessageParser:
    """A parser whose calls are named call-0, call-1, ...; "required" and "named" (of `f`) are styles too."""
    numbers = itertools.count()

    def new_call_id() -> str:
        return f"call-{next(numbers)}"

    machine: Any = None
    if calls == "named":
        machine = NamedCall(new_call_id, "f")
    elif calls == "required":
        machine = RequiredCalls(new_call_id)
    elif calls is not None:
        machine = TOOL_CALL_PARSERS[calls](new_call_id)
    splitter = None if reasoning is None else ReasoningSplitter(REASONING_PARSERS[reasoning], is_open)
    return MessageParser(splitter, machine, single_call=single_call)


def events_of(pieces: Iterable[str], *styles: Any, **options: Any) -> list[Event]:
    """What a new parser finds in a text that comes in pieces, neighbours of one kind joined."""
    reader = parser(*styles, **options)
    found: list[Event] = [event for piece in pieces for event in reader.push(piece)]
    return joined([*found, *reader.finish()])


def joined(events: Sequence[Event]) -> list[Event]:
    """Events without the cuts that only come from the pieces."""
    result: list[Event] = []
    for event in events:
        last = result[-1] if result else None
        if isinstance(event, (Content, Reasoning)) and type(last) is type(event):
            result[-1] = type(event)(last.text + event.text)
        elif isinstance(event, CallArguments) and isinstance(last, CallArguments) and last.index == event.index:
            result[-1] = CallArguments(event.index, last.text + event.text)
        else:
            result.append(event)
    return result


def message_of(text: str, *styles: Any, **options: Any) -> Message:
    """The whole message that a text makes."""
    return Message.of(events_of([text], *styles, **options))


def calls_of(message: Message) -> list[tuple[str, str]]:
    """Names and arguments."""
    return [(call.name, call.arguments) for call in message.tool_calls]
