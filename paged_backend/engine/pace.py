"""How fast the engine computes and how fast its queue drains, measured while it works."""

from __future__ import annotations

import math

_STEP_MEMORY = 0.99
"""What a step's weight is worth one step later: about the last hundred count."""

_START_MEMORY = 0.95
"""What a start's weight is worth one start later: about the last twenty count."""

LONGEST_S = 600.0
"""No estimate of the queue says more: whoever would wait so long asks again before."""


class Pace:
    """Two measurements, and what they say about a request that is not there yet.

    Steps: a line through (tokens, seconds) of the last ones by least squares, for what a step costs by itself and what
    each of its tokens adds. The queue: seconds between two of its requests' first steps, while it is not empty.

    The engine's thread notes; any thread may ask. An answer in the middle of a note is made of numbers that are a step
    apart, which an estimate can bear.

    Attributes:
        stepped_s: `time.monotonic` at the end of the last step.
    """

    __slots__ = ("_n", "_num_starts", "_queue_s", "_x", "_xx", "_xy", "_y", "stepped_s")

    def __init__(self) -> None:
        self.stepped_s = -math.inf
        self._n = self._x = self._y = self._xx = self._xy = 0.0
        self._queue_s = 0.0
        self._num_starts = 0.0

    def numbers(self) -> tuple[float, ...]:
        """All that has been measured, for another process."""
        return tuple([getattr(self, name) for name in self.__slots__])

    def take_over(self, numbers: tuple[float, ...]) -> None:
        """Replaces what has been measured by the `numbers` of another one."""
        for name, number in zip(self.__slots__, numbers, strict=True):
            setattr(self, name, number)

    def note_step(self, num_tokens: int, seconds: float, now_s: float) -> None:
        """A step of so many tokens, which ends now, took so many seconds."""
        self.stepped_s = now_s
        memory = _STEP_MEMORY
        self._n = self._n * memory + 1.0
        self._x = self._x * memory + num_tokens
        self._y = self._y * memory + seconds
        self._xx = self._xx * memory + num_tokens * num_tokens
        self._xy = self._xy * memory + num_tokens * seconds

    def note_queue(self, num_started: int, seconds: float) -> None:
        """In so many seconds with a queue, so many of its requests got their first step."""
        if not num_started:
            self._queue_s += seconds
        for _ in range(num_started):
            self._queue_s = self._queue_s * _START_MEMORY + seconds / num_started
            self._num_starts = self._num_starts * _START_MEMORY + 1.0

    def queue_s(self, num_requests: float) -> float | None:
        """Seconds until so many requests have left the queue; None where there has been no queue yet."""
        if self._queue_s == 0.0:
            return None
        # Before the first has left, the next one takes at least what has passed.
        return min(num_requests * self._queue_s / max(self._num_starts, 1.0), LONGEST_S)

    def compute_s(self, num_prompt_tokens: int, num_output_tokens: int, *, num_running: int, budget: int) -> float:
        """Seconds that a request takes from its first step to its last; 0 where nothing has been measured.

        Args:
            num_prompt_tokens: to be computed, none of them found in the cache.
            num_output_tokens: at least one; the last step of the prompt draws the first.
            num_running: sequences that draw a token in the same steps, itself among them.
            budget: most tokens of a step.
        """
        step_s, token_s = self._line()
        num_prompt_steps = -(-max(num_prompt_tokens, 1) // budget)
        prompt_s = num_prompt_steps * step_s + num_prompt_tokens * token_s
        return prompt_s + (num_output_tokens - 1) * (step_s + num_running * token_s)

    def _line(self) -> tuple[float, float]:
        """Seconds of a step, and of each of its tokens: neither below 0."""
        n, x, y = self._n, self._x, self._y
        if n == 0.0 or x == 0.0:  # one without the other is in the middle of the first note
            return 0.0, 0.0
        spread = n * self._xx - x * x
        token_s = (n * self._xy - x * y) / spread if spread > 1e-9 * n * self._xx else 0.0
        # A slope that would leave the step itself less than nothing is the mean's.
        token_s = min(max(token_s, 0.0), y / x)
        return max((y - token_s * x) / n, 0.0), token_s
