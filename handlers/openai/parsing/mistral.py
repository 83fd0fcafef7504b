"""Mistral's styles: [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...], and later [TOOL_CALLS]name[ARGS]{...}."""

from __future__ import annotations

import re

from paged_backend.handlers.openai.parsing.call_list import ListedCalls

_BEGIN, _ID, _ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_HEAD = re.compile(r"([\w.:-]+)\s*(?:\[CALL_ID\]\s*(\w+)\s*)?(?:\[ARGS\]\s*)?(?={)", re.ASCII)
_HEAD_SO_FAR = re.compile(r"[\w.:-]+\s*(?:\[[A-Z_]*)?(?:\]\s*\w*\s*(?:\[[A-Z]*)?)?(?:\]\s*)?", re.ASCII)
_LONGEST_HEAD = 256


class MistralCalls(ListedCalls):
    """Calls after a marker: one array of them, or a marker, a name and arguments for each."""

    begin = _BEGIN
    markers = (_BEGIN, _ID, _ARGUMENTS)

    def _begin(self, first: str) -> bool:
        if first == "[":
            return self._begin_list()
        if first == "{":
            return self._begin_object()
        head = _HEAD.match(self._text)
        if head is not None:
            self._eat(head.end())
            return self._begin_arguments(head[1], head[2])
        is_open = _HEAD_SO_FAR.fullmatch(self._text[: _LONGEST_HEAD + 1]) is not None
        if is_open and len(self._text) <= _LONGEST_HEAD and not self._ended:
            return False
        return self._no_call()
