"""Llama 3's JSON style: a message that is {"name": ..., "parameters": {...}}, or several, separated by semicolons."""

from __future__ import annotations

from paged_backend.handlers.openai.parsing.machine import CallMachine, NewCallId

_TAG = "<|python_tag|>"
_SEPARATORS = " \t\n\r;,"


class Llama3JsonCalls(CallMachine):
    """Calls where the message begins with one, or after the tag that Llama puts before them."""

    begin = _TAG
    markers = (_TAG,)

    def __init__(self, new_call_id: NewCallId) -> None:
        super().__init__(new_call_id)
        self._state = self._start

    def _start(self) -> bool:
        first = self._eat_space()
        if first == "{":
            return self._begin_object()
        if _TAG.startswith(self._text) and not self._ended:
            return False
        if not self._text.startswith(_TAG):
            return self._no_call()
        return self._begin_tag()

    def _begin_tag(self) -> bool:
        self._eat(len(_TAG))
        self._state = self._call_start
        return True

    def _after_call(self) -> bool:
        rest = self._text.lstrip(_SEPARATORS)
        self._state = self._content
        if rest.startswith(("{", _TAG)):
            self._eat(len(self._text) - len(rest))
            return self._begin_object() if rest[0] == "{" else self._begin_tag()
        if not self._ended and _TAG.startswith(rest):
            self._state = self._after_call
            return False
        if not rest:
            self._text = ""
        return True
