"""How much of the time that a run may take is left."""

from __future__ import annotations

import time
from collections.abc import Callable


class Budget:
    """Seconds from its making on.

    Args:
        seconds: in all.
        clock: seconds since whenever.

    Attributes:
        skipped: what was left out for want of time, in words.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.skipped: list[str] = []
        self._clock = clock
        self._seconds = seconds
        self._end = clock() + seconds

    @property
    def left_s(self) -> float:
        """Of all."""
        return max(self._end - self._clock(), 0.0)

    def part(self, share: float) -> Budget:
        """A share of all, but no more than is left; what it skips is skipped here."""
        part = Budget(min(share * self._seconds, self.left_s), self._clock)
        part.skipped = self.skipped
        return part

    def allows(self, what: str, at_least_s: float = 0.0) -> bool:
        """Whether so much is left; if not, it is noted."""
        if self.left_s > at_least_s:
            return True
        self.skipped.append(f"{what}: no time was left")
        return False
