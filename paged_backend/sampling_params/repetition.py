"""Outputs that go round in circles: what a circle is, and whether one has been reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from paged_backend.errors import InvalidRequestError
from paged_backend.sampling_params.checks import check_integer

MAX_PATTERN_SIZE = 1000
"""Tokens of a pattern at most."""

_MAX_COUNT = 1000


@dataclass(frozen=True, slots=True)
class RepetitionDetectionParams:
    """Ends a sample whose last tokens are one pattern, over and over. Names are vLLM's.

    Attributes:
        max_pattern_size: tokens of the longest pattern that is looked for; 0 looks for none.
        min_pattern_size: tokens of the shortest one; 0 means 1.
        min_count: times that the pattern must stand there, one behind the other, at least 2.

    Raises:
        InvalidRequestError: a number is out of range; `param` is "repetition_detection".
    """

    max_pattern_size: int = 0
    min_pattern_size: int = 0
    min_count: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            check_integer(f"repetition_detection.{field.name}", getattr(self, field.name))
        most, least, count = self.max_pattern_size, self.min_pattern_size, self.min_count
        if not 0 <= least <= most <= MAX_PATTERN_SIZE:
            raise _refusal(
                f"its pattern sizes must be 0 <= min_pattern_size <= max_pattern_size <= {MAX_PATTERN_SIZE}, "
                f"got {least} and {most}"
            )
        if most and not 2 <= count <= _MAX_COUNT:
            raise _refusal(f"min_count must be in 2..{_MAX_COUNT} where max_pattern_size is above 0, got {count}")

    def found_in(self, token_ids: Sequence[int], start: int = 0) -> bool:
        """Whether the tokens from `start` on end with a pattern that repeats.

        A size costs no more than it takes to find the token that tells that there is none.
        """
        num_tokens, count = len(token_ids) - start, self.min_count
        for size in range(max(1, self.min_pattern_size), self.max_pattern_size + 1):
            if size * count > num_tokens:
                return False
            # All of it is periodic if it equals itself moved by one pattern; most ends differ in the last token.
            if token_ids[-1] == token_ids[-1 - size] and _ends_alike(token_ids, size, size * (count - 1)):
                return True
        return False


def _ends_alike(token_ids: Sequence[int], distance: int, num_tokens: int) -> bool:
    """Whether the last tokens equal those so far before them. From the end on, a stretch of twice the length each."""
    end, width = len(token_ids), 16
    first = end - num_tokens
    while end > first:
        begin = max(first, end - width)
        if token_ids[begin:end] != token_ids[begin - distance : end - distance]:
            return False
        end, width = begin, 2 * width
    return True


def _refusal(what: str) -> InvalidRequestError:
    return InvalidRequestError(f"repetition_detection: {what}.", param="repetition_detection")
