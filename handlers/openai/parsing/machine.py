"""What all parsers are made of: states that eat a text from its front, and wait where it could still go two ways."""

from __future__ import annotations

from collections.abc import Callable

from paged_backend.handlers.openai.parsing.call_object import CallObject
from paged_backend.handlers.openai.parsing.events import (
    CallArguments,
    CallBegin,
    CallBroken,
    CallEnd,
    Content,
    Event,
)
from paged_backend.handlers.openai.parsing.json_value import JsonValue

State = Callable[[], bool]
NewCallId = Callable[[], str]


def num_begun(text: str, marker: str) -> int:
    """How many characters at a text's end may be the beginning of a marker that is not in it."""
    for size in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:size]):
            return size
    return 0


class TextMachine:
    """Reads one sample's text. What it finds does not depend on how the text is cut into pieces.

    A state is a method that looks at `_text`, what has come and is not yet eaten, and says whether it got on: by eating
    something or by becoming another state. One that did not get on is called again when there is more text, or none to
    come (`_ended`).
    """

    def __init__(self) -> None:
        self._text = ""
        self._ended = False
        self._events: list[Event] = []
        self._state: State

    @property
    def num_held(self) -> int:
        """Characters that have come and of which nothing was told yet."""
        return len(self._text)

    def push(self, text: str) -> list[Event]:
        """Adds text; returns what this has made certain."""
        self._text += text
        return self._run()

    def finish(self) -> list[Event]:
        """Returns what was held back: no more text comes."""
        self._ended = True
        return self._run()

    def _run(self) -> list[Event]:
        while self._state():
            pass
        events, self._events = self._events, []
        return events


class CallMachine(TextMachine):
    """A machine that finds tool calls in content.

    White space around calls is nobody's: it is left out. What looked like a call and is none is content, whole.

    Attributes:
        begin: what stands before calls; "" where calls stand at the beginning only.
        markers: texts that the model may write as special tokens, so that these must not be left out of its text.
        num_calls: calls that have begun.
    """

    begin = ""
    markers: tuple[str, ...] = ()

    def __init__(self, new_call_id: NewCallId) -> None:
        super().__init__()
        self.num_calls = 0
        self._new_call_id = new_call_id
        self._call = CallObject()
        self._value = JsonValue()
        self._begun = False
        self._raw: list[str] = []
        self._state = self._content

    @property
    def num_held(self) -> int:
        return len(self._text) + sum(map(len, self._raw))

    def _content(self) -> bool:
        """Passes content on, up to what may be a call."""
        if not self.begin:
            self._say_but(0)
            return False
        if not self._say_until(self.begin):
            return False
        self._state = self._call_start
        return True

    def _call_start(self) -> bool:
        """Has seen what stands before calls."""
        first = self._eat_space()
        if first:
            return self._begin(first)
        return self._no_call() if self._ended else False

    def _begin(self, first: str) -> bool:
        """A call begins with this character, or there is none."""
        return self._begin_object() if first == "{" else self._no_call()

    def _after_call(self) -> bool:
        """Has seen the end of a call."""
        self._state = self._content
        return True

    def _say(self, text: str) -> None:
        if text:
            self._events.append(Content(text))

    def _say_until(self, marker: str) -> bool:
        """Passes content on up to a marker, which it eats and keeps as raw text, with white space before it.

        Returns:
            Whether the marker is there. What may be a part of it, and white space, is held back.
        """
        start = self._text.find(marker)
        if start >= 0:
            kept = len(self._text[:start].rstrip())
            self._say(self._text[:kept])
            self._text = self._text[kept:]
            self._raw.clear()
            self._eat(start - kept + len(marker))
            return True
        self._say_but(num_begun(self._text, marker))
        return False

    def _say_but(self, num_held: int) -> None:
        """Passes content on but for so many characters at its end, and white space before them, until the end."""
        kept = len(self._text)
        if not self._ended:
            kept = len(self._text[: kept - num_held].rstrip())
        elif self.num_calls and self._text.isspace():
            self._text = ""
            return
        self._say(self._text[:kept])
        self._text = self._text[kept:]

    def _eat(self, num_characters: int) -> None:
        """Takes text that belongs to a call, or would."""
        self._raw.append(self._text[:num_characters])
        self._text = self._text[num_characters:]

    def _eat_space(self) -> str:
        """Takes white space; returns the first character after it, or "" where none has come."""
        self._eat(len(self._text) - len(self._text.lstrip()))
        return self._text[:1]

    def _no_call(self) -> bool:
        """What was eaten was none: it is content."""
        self._say("".join(self._raw))
        self._raw.clear()
        self._state = self._content
        return True

    def _begin_object(self) -> bool:
        """A call as a JSON object is to come."""
        self._call = CallObject()
        self._begun = False
        self._state = self._object
        return True

    def _object(self) -> bool:
        """Reads a call's object."""
        call = self._call
        self._eat(call.feed(self._text))
        if call.has_begun and call.name is not None:
            if not self._begun:
                self._begin_call(call.name)
            self._add_arguments(call.take_arguments())
        if call.status == "done":
            self._end_call()
            self._state = self._after_call
            return True
        if call.status == "open" and not self._ended:
            return False
        if not self._begun:
            return self._no_call()
        self._state = self._broken
        return True

    def _begin_arguments(self, name: str, call_id: str | None = None) -> bool:
        """A call's arguments are to come, a JSON object that stands alone."""
        self._begin_call(name, call_id)
        self._value = JsonValue()
        self._state = self._arguments
        return True

    def _arguments(self) -> bool:
        """Reads arguments that stand alone."""
        end = self._value.feed(self._text)
        self._add_arguments(self._text[:end])
        self._eat(end)
        if self._value.status == "done":
            self._end_call()
            self._state = self._after_call
            return True
        if self._value.status == "open" and not self._ended:
            return False
        self._state = self._broken
        return True

    def _begin_call(self, name: str, call_id: str | None = None) -> None:
        self._begun = True
        self._events.append(CallBegin(self.num_calls, call_id or self._new_call_id(), name))
        self.num_calls += 1

    def _add_arguments(self, text: str) -> None:
        if text:
            self._events.append(CallArguments(self.num_calls - 1, text))

    def _end_call(self) -> None:
        self._events.append(CallEnd(self.num_calls - 1))
        self._raw.clear()

    def _broken(self) -> bool:
        """Passes on the rest of a call that had begun, and is none: to the end of the text."""
        self._add_arguments(self._text)
        self._eat(len(self._text))
        if self._ended:
            self._break_call()
        return False

    def _break_call(self) -> None:
        self._events.append(CallBroken(self.num_calls - 1, "".join(self._raw)))
        self._raw.clear()
        self._state = self._content
