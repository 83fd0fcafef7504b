"""Tokens become text while they come: only text that is final leaves, and stop strings end it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace

from paged_backend.engine.token_text import TokenTexts
from paged_backend.engine.tokenizer import Tokenizer
from paged_backend.outputs import FinishReason
from paged_backend.sampling_params import SamplingParams

_REPLACEMENT = "\ufffd"
_CONTEXT_TOKENS = 8
"""Prompt tokens that are decoded along, because some tokenizers' spaces depend on the token before."""
_MAX_CHARACTER_TOKENS = 4
"""A UTF-8 character has at most four bytes, and a token at least one."""


@dataclass(slots=True)
class IncrementalDetokenizer:
    """Turns one sample's tokens into text that never holds half a character.

    Two offsets into the tokens move along: text up to `_read` has been given out, and `_prefix` begins the window
    that is decoded together with what is new, so that the tokenizer sees enough context. Most tokens need none of
    it: where all before is given out, and some of it is there, a token of a text of its own adds just that.
    """

    tokenizer: Tokenizer
    skip_special_tokens: bool
    _texts: TokenTexts
    _ids: list[int] = field(default_factory=list)
    _prefix: int = 0
    _read: int = 0
    _prefix_text: str | None = ""  # of _prefix .. _read; None until it is asked for

    @classmethod
    def after_prompt(
        cls, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], skip_special_tokens: bool
    ) -> IncrementalDetokenizer:
        """One for a sample that continues a prompt."""
        context = list(prompt_token_ids[-_CONTEXT_TOKENS:])
        text = tokenizer.decode(context, skip_special_tokens)
        while text.startswith(_REPLACEMENT):  # the cut went through a character: leave its rest out
            context = context[1:]
            text = tokenizer.decode(context, skip_special_tokens)
        if text.endswith(_REPLACEMENT):
            context, text = [], ""  # the prompt's end is no whole character: begin afresh
        texts = tokenizer.token_texts(skip_special_tokens)
        return cls(tokenizer, skip_special_tokens, texts, context, 0, len(context), text)

    def copy(self) -> IncrementalDetokenizer:
        """Another one in the same state."""
        return replace(self, _ids=list(self._ids))

    def push(self, token_id: int) -> str:
        """Adds a token; returns the text that became final."""
        if self._read == len(self._ids) and self._prefix_text != "":
            own_text = self._texts[token_id]
            if own_text is not None:
                if own_text:
                    self._ids = [token_id]
                    self._prefix, self._read, self._prefix_text = 0, 1, None
                return own_text
        self._ids.append(token_id)
        text = self._decode(len(self._ids))
        if len(text) > len(self._context_text()) and not text.endswith(_REPLACEMENT):
            return self._give_out(text, len(self._ids))
        if len(self._ids) - self._read > 2 * _MAX_CHARACTER_TOKENS:
            return self._give_out_settled(text)
        return ""

    def flush(self) -> str:
        """Returns what is left, as replacement characters where the last character stayed incomplete."""
        if self._read == len(self._ids):
            return ""
        return self._give_out(self._decode(len(self._ids)), len(self._ids))

    def _context_text(self) -> str:
        if self._prefix_text is None:
            self._prefix_text = self._decode(self._read)
        return self._prefix_text

    def _decode(self, end: int) -> str:
        return self.tokenizer.decode(self._ids[self._prefix : end], self.skip_special_tokens)

    def _give_out(self, text: str, end: int) -> str:
        new = text[len(self._context_text()) :]
        self._prefix, self._read = self._read, end
        self._prefix_text = self._decode(end)
        return new

    def _give_out_settled(self, text: str) -> str:
        """A long run of bytes that make no character: gives out the part that later tokens cannot change."""
        for end in range(len(self._ids) - _MAX_CHARACTER_TOKENS, self._read, -1):
            settled = self._decode(end)
            if text.startswith(settled):
                return self._give_out(settled, end)
        return ""


@dataclass(slots=True)
class UnspacedDetokenizer(IncrementalDetokenizer):
    """One that writes special tokens in a row as they are, without what the tokenizer puts between them."""

    _last_id: int = -1

    def push(self, token_id: int) -> str:
        """See `IncrementalDetokenizer.push`."""
        text = IncrementalDetokenizer.push(self, token_id)
        special = self.tokenizer.added_tokens
        last_id, self._last_id = self._last_id, token_id
        return special[token_id] if text and token_id in special and last_id in special else text


@dataclass(frozen=True, slots=True)
class Finish:
    """Why a sample ends, and what its tokens' log-probabilities add up to, where they have chosen it."""

    reason: FinishReason
    stop_reason: int | str | None = None
    cumulative_logprob: float | None = None


class SampleText:
    """The text of one sample: detokenised, searched for stop strings, held back while it may become one."""

    __slots__ = (
        "_beginnings",
        "_detokenizer",
        "_held",
        "_include_stop",
        "_min_tokens",
        "_most_held",
        "_num_tokens",
        "_stops",
    )

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        spaced = params.skip_special_tokens or params.spaces_between_special_tokens
        kind = IncrementalDetokenizer if spaced else UnspacedDetokenizer
        self._detokenizer = kind.after_prompt(tokenizer, prompt_token_ids, params.skip_special_tokens)
        self._stops = tuple(params.stop or ())
        self._beginnings = frozenset(stop[0] for stop in self._stops)
        self._most_held = max(map(len, self._stops), default=1) - 1
        self._include_stop = params.include_stop_str_in_output
        self._min_tokens = params.min_tokens
        self._num_tokens = 0
        self._held = ""

    def extended(self, token_id: int) -> tuple[SampleText, str | None]:
        """The text with one more token, and the stop string that this completes, if any; this one stays as it is."""
        other = copy(self)
        other._detokenizer = self._detokenizer.copy()
        _, stop = other.push(token_id)
        return other, stop

    def take(self, token_id: int | None, finish: Finish | None) -> tuple[str, Finish | None]:
        """Adds a token or an end, or both.

        Args:
            token_id: None for an end without a token.
            finish: why the sample ends with it, whatever its text.

        Returns:
            The text that became final, and why the sample ends: `finish`, or a stop string that was reached.
        """
        if token_id is None:
            return self.finish(None), finish
        if finish is not None and finish.reason == "stop":
            return self.finish(token_id if self._include_stop else None), finish
        text, stop = self.push(token_id)
        if stop is not None:
            return text, Finish("stop", stop)
        if finish is not None:
            text += self.finish(None)
        return text, finish

    def push(self, token_id: int) -> tuple[str, str | None]:
        """Adds a token; returns (text that became final, the stop string that ended the sample or None)."""
        if not self._stops:
            return self._detokenizer.push(token_id), None
        self._num_tokens += 1
        text = self._held + self._detokenizer.push(token_id)
        if self._num_tokens <= self._min_tokens:
            self._held = ""
            return text, None
        found = self._first_stop(text)
        if found is not None:
            start, stop = found
            self._held = ""
            return text[: start + len(stop) if self._include_stop else start], stop
        keep = self._num_held_characters(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def finish(self, last_token_id: int | None) -> str:
        """Ends the sample; returns the text still held.

        Args:
            last_token_id: a token that ended the sample and whose text belongs to it, or None.
        """
        text = self._held
        if last_token_id is not None:
            text += self._detokenizer.push(last_token_id)
        self._held = ""
        return text + self._detokenizer.flush()

    def _first_stop(self, text: str) -> tuple[int, str] | None:
        hits = [(start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        return min(hits, default=None, key=lambda hit: hit[0])

    def _num_held_characters(self, text: str) -> int:
        longest = min(len(text), self._most_held)
        if self._beginnings.isdisjoint(text[len(text) - longest :]):
            return 0
        for size in range(longest, 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                return size
        return 0
