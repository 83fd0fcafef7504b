"""What a parser finds in a message, in the order in which it is said; and the whole message that this makes.

Events are made for every token, and a frozen dataclass takes twice as long to make: nobody writes to them all the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Reasoning:
    """Text between the model's thinking markers."""

    text: str


@dataclass(slots=True)
class Content:
    """Text for the reader."""

    text: str


@dataclass(slots=True)
class CallBegin:
    """A tool call whose name is known and whose arguments have begun.

    Attributes:
        index: which of the message's calls, from 0.
        id: what the tool's answer refers to.
    """

    index: int
    id: str
    name: str


@dataclass(slots=True)
class CallArguments:
    """More of a call's arguments: a piece of JSON text, as the model wrote it."""

    index: int
    text: str


@dataclass(slots=True)
class CallEnd:
    """A call's arguments are complete, and are a JSON object."""

    index: int


@dataclass(slots=True)
class CallBroken:
    """A call that had begun was none: its JSON is malformed, or has no end.

    A stream has sent its beginning, so all of its arguments follow as the model wrote them; a whole message has `raw`
    as content in its place.

    Attributes:
        raw: all that the model wrote for it, markers included.
    """

    index: int
    raw: str


Event = Reasoning | Content | CallBegin | CallArguments | CallEnd | CallBroken


@dataclass(slots=True)
class ToolCall:
    """One call of a whole message.

    Attributes:
        arguments: JSON, where the call is complete; else as far as it went.
        complete: whether it has come to its end.
    """

    id: str
    name: str
    arguments: str = ""
    complete: bool = False


@dataclass(slots=True)
class Message:
    """A whole message of the assistant.

    Attributes:
        reasoning, content: None where the model said nothing of it.
        last: the kind of event that it ends with; None where there was none.
    """

    reasoning: str | None = None
    content: str | None = None
    tool_calls: list[ToolCall] = field(default_factory=list)
    last: type[Event] | None = None

    @classmethod
    def of(cls, events: Iterable[Event]) -> Message:
        """The message that a parser's events make, in order."""
        reasoning: list[str] = []
        content: list[str] = []
        calls: dict[int, ToolCall] = {}
        last: type[Event] | None = None
        for event in events:
            last = type(event)
            match event:
                case Reasoning():
                    reasoning.append(event.text)
                case Content():
                    content.append(event.text)
                case CallBegin():
                    calls[event.index] = ToolCall(event.id, event.name)
                case CallArguments():
                    calls[event.index].arguments += event.text
                case CallBroken():
                    del calls[event.index]
                    content.append(event.raw)
                case CallEnd():
                    calls[event.index].complete = True
        return cls("".join(reasoning) or None, "".join(content) or None, list(calls.values()), last)
