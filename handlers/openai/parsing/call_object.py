"""One tool call as a JSON object: {"name": ..., "arguments": {...}}, read while it comes."""

from __future__ import annotations

import json

from paged_backend.handlers.openai.parsing.json_value import WHITESPACE, JsonValue, Status

_ARGUMENT_KEYS = ("arguments", "parameters")


class CallObject:
    """Reads the object; its members may come in any order, and ones of other names are skipped.

    Arguments are an object; null stands for an empty one, and a string for the object that it holds as JSON.

    Attributes:
        status: "done" after the closing brace of a call; "broken" where it is malformed, or is no call.
        name: as soon as it is known.
    """

    def __init__(self) -> None:
        self.status: Status = "open"
        self.name: str | None = None
        self._expect = "brace"
        self._value = JsonValue()
        self._member: list[str] = []  # text of the key or value that is being read
        self._key = ""
        self._has_arguments = False
        self._streams = False
        self._arguments: list[str] = []

    @property
    def has_begun(self) -> bool:
        """Whether this is a call, as far as it goes: it has a name and arguments."""
        return self.name is not None and self._has_arguments

    def take_arguments(self) -> str:
        """The text of the arguments that has come since the last time; nothing before the call has begun."""
        if not self.has_begun:
            return ""
        text = "".join(self._arguments)
        self._arguments.clear()
        return text

    def feed(self, text: str) -> int:
        """Reads on, and returns how many characters were read: all, while the status is "open"."""
        place = 0
        while place < len(text) and self.status == "open":
            if self._expect in ("key", "value"):
                end = self._value.feed(text, place)
                self._keep(text[place:end])
                place = end
                if self._value.status == "done":
                    self._close_member()
                elif self._value.status == "broken":
                    self.status = "broken"
            elif text[place] in WHITESPACE or self._take(text[place]):
                place += 1
            elif self.status == "open" and self._expect not in ("key", "value"):
                self.status = "broken"
        return place

    def _take(self, character: str) -> bool:
        """Reads a character between members; False where it is not read here, or must not be there."""
        match self._expect, character:
            case "brace", "{":
                self._expect = "first key"
            case "first key" | "next key", '"':
                self._streams = False
                self._begin_member("key")
                return False
            case "colon", ":":
                self._expect = "value start"
            case "value start", _:
                self._begin_value(character)
                return False
            case "after", ",":
                self._expect = "next key"
            case "first key" | "after", "}":
                self.status = "done" if self.has_begun else "broken"
            case _:
                return False
        return True

    def _begin_member(self, kind: str) -> None:
        self._expect, self._value = kind, JsonValue()
        self._member.clear()

    def _begin_value(self, first: str) -> None:
        if self._key == "name":
            if first != '"' or self.name is not None:
                self.status = "broken"
        elif self._key in _ARGUMENT_KEYS:
            if first not in '{"n' or self._has_arguments:
                self.status = "broken"
            elif first == "{":
                self._streams = self._has_arguments = True
        self._begin_member("value")

    def _keep(self, text: str) -> None:
        if self._streams:
            self._arguments.append(text)
        else:
            self._member.append(text)

    def _close_member(self) -> None:
        if self._expect == "key":
            self._key = json.loads("".join(self._member))
            self._expect = "colon"
            return
        self._expect = "after"
        if self._key == "name":
            self.name = json.loads("".join(self._member)) or None
            if self.name is None:
                self.status = "broken"
        elif self._key in _ARGUMENT_KEYS and not self._streams:
            self._take_other_arguments(json.loads("".join(self._member)))

    def _take_other_arguments(self, value: str | None) -> None:
        text = "{}" if value is None else value.strip(WHITESPACE)
        inner = JsonValue()
        if text.startswith("{") and inner.feed(text) == len(text) and inner.status == "done":
            self._has_arguments = True
            self._arguments.append(text)
        else:
            self.status = "broken"
