"""Which of a sample's tokens are its text, with their log probabilities: not those of its reasoning and its calls."""

from __future__ import annotations

from collections.abc import Sequence

from paged_backend.handlers.openai.chat_job import ChatJob
from paged_backend.handlers.openai.logprobs import chat_logprobs
from paged_backend.handlers.openai.parsing.events import Content, Event
from paged_backend.handlers.openai.parsing.message_parser import MessageParser
from paged_backend.handlers.openai.protocol.replies import TokenLogprob
from paged_backend.outputs import CompletionDelta, CompletionOutput


class TextTokens:
    """Reads a sample token by token, so that it does not matter how many of them come at once.

    Args:
        parser: one of its own, new.
    """

    def __init__(self, parser: MessageParser) -> None:
        self._parser = parser
        self._waiting: list[tuple[TokenLogprob, str]] = []  # of which is not known what they are

    def add(self, token: TokenLogprob, text: str) -> list[TokenLogprob]:
        """Takes the next token, which adds this to the sample's text; returns those that are now known to be text."""
        self._waiting.append((token, text))
        return self._known(self._parser.push(text))

    def finish(self) -> list[TokenLogprob]:
        """Returns the last ones: no more come."""
        return self._known(self._parser.finish())

    def _known(self, events: Sequence[Event]) -> list[TokenLogprob]:
        """The tokens in which the content is that was told; those before it were a marker's, or a call's."""
        if not events:
            return []
        text = "".join(text for _, text in self._waiting)
        is_said = bytearray(len(text))  # by character
        end = len(text) - (self._parser.num_held if isinstance(events[-1], Content) else 0)
        for event in reversed(events):
            if isinstance(event, Content):
                # From the end: a marker before it may have the same words.
                start = text.rfind(event.text, 0, end)
                if start >= 0:
                    is_said[start : start + len(event.text)] = b"\1" * len(event.text)
                    end = start
        known: list[TokenLogprob] = []
        place, last = 0, is_said.rfind(1) + 1
        for index, (token, part) in enumerate(self._waiting):
            if last and place >= last:
                del self._waiting[:index]
                return known
            if 1 in is_said[place : place + len(part)]:
                known.append(token)
            place += len(part)
        self._waiting.clear()
        return known


class TextLogprobs:
    """The log probabilities of one sample's text, as its tokens come."""

    def __init__(self, job: ChatJob) -> None:
        self._num_top = job.num_top
        self._tokens = TextTokens(job.reader.parser())

    def of(self, gain: CompletionDelta | CompletionOutput) -> list[TokenLogprob]:
        """Those of the text in a step's gain, or in a whole output; nothing where none were asked for."""
        if self._num_top is None or gain.logprobs is None:
            return []
        entries: list[TokenLogprob] = chat_logprobs(
            gain.token_ids, gain.logprobs, num_top=self._num_top, as_token_ids=False
        )["content"]
        known: list[TokenLogprob] = []
        for index, entry in enumerate(entries):
            ends = index + 1 == len(entries) and _ended_by_token(gain, entry["token"])
            known += self._tokens.add(entry, "" if ends else entry["token"])
        return known if gain.finish_reason is None else [*known, *self._tokens.finish()]


def _ended_by_token(gain: CompletionDelta | CompletionOutput, token: str) -> bool:
    """Whether the last token has ended the sample, and is none of its text."""
    stopped = gain.finish_reason == "stop" and not isinstance(gain.stop_reason, str)
    return stopped and not gain.text.endswith(token)
