"""What is known of the grammars that were asked for lately."""

from __future__ import annotations

import sys
from collections import OrderedDict

from paged_backend.errors import InvalidRequestError
from paged_backend.structured.source import GrammarSource

Verdict = str | InvalidRequestError
"""A grammar in llguidance's own form, which has been tried out; or why it was refused."""

_BYTES_BESIDE = 1024
"""Of an entry, beside its texts: Python's objects."""


class KnownGrammars:
    """Verdicts by source, those that were asked for last, as many as fit. Not safe to use from several threads.

    Only texts are kept: what llguidance makes of them grows while it is used, and belongs to who uses it.

    Args:
        max_bytes: of all entries together.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[GrammarSource, tuple[Verdict, int]] = OrderedDict()
        self.num_bytes = 0

    def get(self, source: GrammarSource) -> Verdict | None:
        """The verdict, which is then the last one to be pushed out; None if it is not known."""
        entry = self._entries.get(source)
        if entry is None:
            return None
        self._entries.move_to_end(source)
        return entry[0]

    def put(self, source: GrammarSource, verdict: Verdict) -> None:
        """Keeps a verdict, in the place of what was known of its source. One that does not fit is not kept."""
        _, num_bytes = self._entries.pop(source, (verdict, 0))
        self.num_bytes -= num_bytes
        texts = (source.text, source.whitespace_pattern or "", str(verdict))
        num_bytes = _BYTES_BESIDE + sum([sys.getsizeof(text) for text in texts])
        self._entries[source] = verdict, num_bytes
        self.num_bytes += num_bytes
        while self.num_bytes > self._max_bytes:
            _, (_, num_bytes) = self._entries.popitem(last=False)
            self.num_bytes -= num_bytes

    def __len__(self) -> int:
        return len(self._entries)
