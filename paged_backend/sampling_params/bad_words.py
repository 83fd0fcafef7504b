"""Sequences of tokens that an output must not come to hold, found by how they begin."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MAX_BAD_WORDS = 1024
"""Sequences of a request at most, after all ways to write a word."""

MAX_BAD_WORD_TOKENS = 64
"""Tokens of a sequence at most. Together they bound what a step may cost a row, and a request's memory."""


class BadWords(tuple[tuple[int, ...], ...]):
    """The sequences, with an index that all samples of a request share: a step asks once for each of its rows.

    Nearly always, the output's last token is in no sequence: then one look tells. Where it is, as many are needed as
    there are lengths of beginnings that end with it.
    """

    _alone: tuple[int, ...]
    _lengths: dict[int, list[int]]
    _last_tokens: dict[tuple[int, ...], tuple[int, ...]]

    def __new__(cls, words: Iterable[Sequence[int]]) -> BadWords:
        """Makes the index.

        Args:
            words: token ids, none of them empty.
        """
        self = super().__new__(cls, map(tuple, words))
        last_tokens: dict[tuple[int, ...], dict[int, None]] = {}
        for word in self:
            last_tokens.setdefault(word[:-1], {})[word[-1]] = None
        self._last_tokens = {beginning: tuple(tokens) for beginning, tokens in last_tokens.items()}
        self._alone = self._last_tokens.pop((), ())
        self._lengths = {}
        for beginning in self._last_tokens:
            lengths = self._lengths.setdefault(beginning[-1], [])
            if len(beginning) not in lengths:
                lengths.append(len(beginning))
        return self

    def last_tokens(self, output: Sequence[int]) -> tuple[int, ...]:
        """Of each sequence that an output ends with but for its last token, that one."""
        lengths = self._lengths.get(output[-1]) if output else None
        if lengths is None:
            return self._alone
        found = self._alone
        for length in lengths:
            if length <= len(output):
                found += self._last_tokens.get(tuple(output[-length:]), ())
        return found
