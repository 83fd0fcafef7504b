"""One JSON value, checked character by character while it comes."""

from __future__ import annotations

import re
from typing import Literal

Status = Literal["open", "done", "broken"]

WHITESPACE = " \t\n\r"
_STRING_RUN = re.compile(r'[^"\\\x00-\x1f]+')
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_NUMBER_CHARACTERS = "+-.0123456789eE"
_LITERALS = ("true", "false", "null")
_HEX = "0123456789abcdefABCDEF"


class JsonValue:
    """Reads one value, strictly as RFC 8259 has it, of any depth and without recursion.

    Attributes:
        status: "open" while more may come, "done" after its last character, "broken" at one that cannot be there. A
            number is done at the first character after it, which is not its own.
    """

    __slots__ = ("_closers", "_expect", "_hex_left", "_is_key", "_word", "status")

    def __init__(self) -> None:
        self.status: Status = "open"
        self._closers: list[str] = []
        self._expect = "value"
        self._is_key = False
        self._hex_left = 0
        self._word = ""

    def feed(self, text: str, start: int = 0) -> int:
        """Reads on, and returns where the value's text ends so far: all of it while the value is open."""
        place = start
        while place < len(text) and self.status == "open":
            if self._expect == "string" and (run := _STRING_RUN.match(text, place)):
                place = run.end()
            elif self._take(text[place]):
                place += 1
        return place

    def _take(self, character: str) -> bool:
        """Reads one character; False where it is not of this value, or was not the end of what it ended."""
        match self._expect:
            case "string":
                if character == '"':
                    self._close_string()
                elif character == "\\":
                    self._expect = "escape"
                else:
                    return self._break()
            case "escape":
                if character == "u":
                    self._expect, self._hex_left = "hex", 4
                elif character in '"\\/bfnrt':
                    self._expect = "string"
                else:
                    return self._break()
            case "hex":
                if character not in _HEX:
                    return self._break()
                self._hex_left -= 1
                if not self._hex_left:
                    self._expect = "string"
            case "number":
                if character not in _NUMBER_CHARACTERS:
                    if not _NUMBER.fullmatch(self._word):
                        return self._break()
                    self._close_value()
                    return False
                self._word += character
            case "literal":
                self._word += character
                if self._word in _LITERALS:
                    self._close_value()
                elif not any(literal.startswith(self._word) for literal in _LITERALS):
                    return self._break()
            case _:
                return self._between(character)
        return True

    def _between(self, character: str) -> bool:
        """Reads a character that stands outside of strings, numbers and literals."""
        if character in WHITESPACE:
            return True
        match self._expect:
            case "value" | "first item":
                if character == "]" and self._expect == "first item":
                    self._close_container()
                else:
                    return self._begin_value(character)
            case "key" | "first key":
                if character == '"':
                    self._expect, self._is_key = "string", True
                elif character == "}" and self._expect == "first key":
                    self._close_container()
                else:
                    return self._break()
            case "colon":
                if character != ":":
                    return self._break()
                self._expect = "value"
            case "after":
                if character == self._closers[-1]:
                    self._close_container()
                elif character == ",":
                    self._expect = "key" if self._closers[-1] == "}" else "value"
                else:
                    return self._break()
        return True

    def _begin_value(self, character: str) -> bool:
        if character == "{":
            self._closers.append("}")
            self._expect = "first key"
        elif character == "[":
            self._closers.append("]")
            self._expect = "first item"
        elif character == '"':
            self._expect, self._is_key = "string", False
        elif character in "-0123456789":
            self._expect, self._word = "number", character
        elif character in "tfn":
            self._expect, self._word = "literal", character
        else:
            return self._break()
        return True

    def _close_string(self) -> None:
        if self._is_key:
            self._expect = "colon"
        else:
            self._close_value()

    def _close_container(self) -> None:
        self._closers.pop()
        self._close_value()

    def _close_value(self) -> None:
        self._expect = "after"
        if not self._closers:
            self.status = "done"

    def _break(self) -> bool:
        self.status = "broken"
        return False
