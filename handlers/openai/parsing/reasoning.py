"""Reasoning between markers: what comes before the end marker is split off, the rest goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paged_backend.handlers.openai.parsing.events import Content, Reasoning
from paged_backend.handlers.openai.parsing.machine import TextMachine, num_begun


@dataclass(frozen=True, slots=True)
class ReasoningMarkers:
    """How a family of models marks its reasoning.

    Attributes:
        begins_open: a text begins with reasoning, marker or none, unless the prompt has closed it.
    """

    begin: str
    end: str
    begins_open: bool = False

    def is_open(self, prompt: str, continued: str | None) -> bool | None:
        """Whether a prompt leaves the reasoning open at its end; None where the model decides.

        Args:
            continued: the text of the assistant's message that the model continues; None where it begins one.
        """
        end = prompt.rstrip()
        if end.endswith(self.begin):
            return True
        if end.endswith(self.end):
            return False
        if continued is not None:
            return continued.rfind(self.begin) > continued.rfind(self.end)
        return True if self.begins_open else None


class ReasoningSplitter(TextMachine):
    """Splits one sample's text: `Reasoning` events, then `Content` events for all that comes after.

    Args:
        is_open: whether the prompt has opened the reasoning; None where the text may do so at its beginning.
    """

    def __init__(self, markers: ReasoningMarkers, is_open: bool | None) -> None:
        super().__init__()
        self._markers = markers
        self._is_open = is_open
        self._state = self._rest if is_open is False else self._start

    def _start(self) -> bool:
        rest, begin = self._text.lstrip(), self._markers.begin
        if rest.startswith(begin):
            self._text = rest[len(begin) :]
            self._state = self._reasoning
        elif begin.startswith(rest) and not self._ended:
            return False
        else:
            self._state = self._reasoning if self._is_open else self._rest
        return True

    def _reasoning(self) -> bool:
        end = self._text.find(self._markers.end)
        if end >= 0:
            self._pass(end)
            self._text = self._text[len(self._markers.end) :]
            self._state = self._rest
            return True
        self._pass(len(self._text) - (0 if self._ended else num_begun(self._text, self._markers.end)))
        return False

    def _pass(self, num_characters: int) -> None:
        if num_characters:
            self._events.append(Reasoning(self._text[:num_characters]))
            self._text = self._text[num_characters:]

    def _rest(self) -> bool:
        if self._text:
            self._events.append(Content(self._text))
            self._text = ""
        return False


class ReasoningCount:
    """Counts one sample's tokens of reasoning, without its markers.

    Args:
        begin_id, end_id: the markers' tokens.
        is_open: as for `ReasoningSplitter`.
    """

    def __init__(self, begin_id: int, end_id: int, is_open: bool | None) -> None:
        self._begin_id = begin_id
        self._end_id = end_id
        self._is_open = is_open is True
        self._is_over = is_open is False

    def add(self, token_ids: Sequence[int]) -> int:
        """How many of a sample's next tokens are reasoning."""
        num_tokens = 0
        for token_id in () if self._is_over else token_ids:
            if token_id == self._end_id:
                self._is_over = True
                break
            if token_id == self._begin_id:
                self._is_open = True
            elif self._is_open:
                num_tokens += 1
        return num_tokens
