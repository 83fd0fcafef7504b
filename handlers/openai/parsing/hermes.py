"""Hermes' and Qwen's style: <tool_call>{"name": ..., "arguments": {...}}</tool_call>, as often as there are calls."""

from __future__ import annotations

from paged_backend.handlers.openai.parsing.machine import CallMachine, num_begun

_BEGIN, _END = "<tool_call>", "</tool_call>"


class HermesCalls(CallMachine):
    """Calls between markers. An end marker that is left out at the end of the text is not missed."""

    begin = _BEGIN
    markers = (_BEGIN, _END)

    def _after_call(self) -> bool:
        rest = self._text.lstrip()
        if rest.startswith(_END):
            self._text = rest[len(_END) :]
        elif _END.startswith(rest):
            if self._ended:
                self._text = ""
            return False
        self._state = self._content
        return True

    def _broken(self) -> bool:
        end = self._text.find(_END)
        kept = end if end >= 0 else len(self._text) - (0 if self._ended else num_begun(self._text, _END))
        self._add_arguments(self._text[:kept])
        self._eat(kept if end < 0 else kept + len(_END))
        if end >= 0 or self._ended:
            self._break_call()
            return True
        return False
