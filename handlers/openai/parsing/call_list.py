"""Calls in a JSON array: [{"name": ..., "arguments": {...}}, ...]."""

from __future__ import annotations

from paged_backend.handlers.openai.parsing.machine import CallMachine, NewCallId


class ListedCalls(CallMachine):
    """A machine that finds arrays of calls."""

    def __init__(self, new_call_id: NewCallId) -> None:
        super().__init__(new_call_id)
        self._in_list = False

    def _begin_list(self) -> bool:
        """The opening bracket is next."""
        self._eat(1)
        self._in_list = True
        self._state = self._item
        return True

    def _item(self) -> bool:
        first = self._eat_space()
        if first == "{":
            return self._begin_object()
        if not first and not self._ended:
            return False
        self._in_list = False
        return self._no_call()

    def _after_call(self) -> bool:
        rest = self._text.lstrip() if self._in_list else self._text
        if self._in_list and rest.startswith(","):
            self._eat(len(self._text) - len(rest) + 1)
            self._state = self._item
            return True
        if self._in_list and not rest and not self._ended:
            return False
        if self._in_list and rest.startswith("]"):
            self._text = rest[1:]
        self._in_list = False
        self._state = self._content
        return True


class RequiredCalls(ListedCalls):
    """A message that a grammar has made an array of calls. One that was cut short keeps its last call as it is."""

    def __init__(self, new_call_id: NewCallId) -> None:
        super().__init__(new_call_id)
        self._state = self._call_start

    def _begin(self, first: str) -> bool:
        return self._begin_list() if first == "[" else self._no_call()

    def _no_call(self) -> bool:
        if self._ended and not self._text:
            self._raw.clear()  # the beginning of a call, cut short
        return super()._no_call()

    def _break_call(self) -> None:
        self._state = self._content


class NamedCall(CallMachine):
    """A message that a grammar has made the arguments of one function: a JSON object, or the beginning of one."""

    def __init__(self, new_call_id: NewCallId, name: str) -> None:
        super().__init__(new_call_id)
        self._name = name
        self._state = self._call_start

    def _begin(self, first: str) -> bool:
        return self._begin_arguments(self._name) if first == "{" else self._no_call()

    def _break_call(self) -> None:
        self._state = self._content
