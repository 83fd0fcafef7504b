"""From one sample's text to the events of a message: reasoning is split off, and calls are found in the rest."""

from __future__ import annotations

from collections.abc import Iterable

from paged_backend.handlers.openai.parsing.events import (
    CallBegin,
    CallBroken,
    CallEnd,
    Content,
    Event,
    Reasoning,
)
from paged_backend.handlers.openai.parsing.machine import CallMachine
from paged_backend.handlers.openai.parsing.reasoning import ReasoningSplitter


class MessageParser:
    """Reads one sample. Without a splitter and a machine, all text is content.

    Args:
        include_reasoning: False leaves the reasoning out.
        single_call: leave out all calls after the first that is complete. What looked like one and is none is text.
        names_call: the request has named the function, so that a call is no reason to stop.

    Attributes:
        num_calls: complete calls that the events have told of.
        has_reasoning: whether there was any, told of or not.
    """

    def __init__(
        self,
        splitter: ReasoningSplitter | None = None,
        calls: CallMachine | None = None,
        *,
        include_reasoning: bool = True,
        single_call: bool = False,
        names_call: bool = False,
    ) -> None:
        self.num_calls = 0
        self.has_reasoning = False
        self._splitter = splitter
        self._calls = calls
        self._include_reasoning = include_reasoning
        self._single_call = single_call
        self._names_call = names_call
        self._leaves_out = False  # the call that is being read

    def push(self, text: str) -> list[Event]:
        """Adds text; returns what this has made certain."""
        if not text:
            return []
        if self._splitter is not None:
            return self._in_content(self._splitter.push(text))
        return [Content(text)] if self._calls is None else self._told(self._calls.push(text))

    def finish(self) -> list[Event]:
        """Returns what was held back: no more text comes."""
        events = [] if self._splitter is None else self._in_content(self._splitter.finish())
        if self._calls is not None:
            events += self._told(self._calls.finish())
        return events

    @property
    def num_held(self) -> int:
        """Characters after the content that was told last, while nothing is told of them."""
        return sum(machine.num_held for machine in (self._splitter, self._calls) if machine is not None)

    def finish_reason(self, reason: str | None) -> str | None:
        """The protocol's word for why a sample has ended: "tool_calls" where the model stopped for calls."""
        return "tool_calls" if reason == "stop" and self.num_calls and not self._names_call else reason

    def _in_content(self, events: Iterable[Event]) -> list[Event]:
        """Looks for calls in the content among a splitter's events."""
        found: list[Event] = []
        for event in events:
            if isinstance(event, Reasoning):
                self.has_reasoning = True
                if self._include_reasoning:
                    found.append(event)
            elif isinstance(event, Content) and self._calls is not None:
                found += self._told(self._calls.push(event.text))
            else:
                found.append(event)
        return found

    def _told(self, events: Iterable[Event]) -> list[Event]:
        told: list[Event] = []
        for event in events:
            if isinstance(event, CallBegin):
                self._leaves_out = self._single_call and self.num_calls > 0
            if not self._leaves_out or isinstance(event, Content):
                told.append(event)
                self.num_calls += isinstance(event, CallEnd)
            elif isinstance(event, CallBroken):
                told.append(Content(event.raw))
        return told
