"""Counts what a key's requests take, and says when there is room for another."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping

from paged_backend.errors import AdmissionError, InvalidRequestError
from paged_backend.handlers.access.limits import KeyLimits

_SECONDS = 60.0
_RETRY_AFTER_S = 1.0
"""What a client is told to wait for one of its own requests to end: only it knows how long they take."""


class LimitError(AdmissionError):
    """The key's requests are at one of its limits."""


class Bucket:
    """A bucket of so many units a minute, full at first. What costs more than it holds is let in when it is full, and
    leaves a debt: the mean over time is kept whatever a request costs."""

    def __init__(self, per_minute: int, now_s: float) -> None:
        self._capacity = float(per_minute)
        self._level = self._capacity
        self._at_s = now_s

    def wait_s(self, cost: float, now_s: float) -> float:
        """Seconds until there is enough; 0 where there is. Changes nothing."""
        missing = min(cost, self._capacity) - self._level_at(now_s)
        return max(0.0, missing * _SECONDS / self._capacity)

    def take(self, cost: float, now_s: float) -> None:
        """Takes units out, or puts them back (a negative cost)."""
        self._level = min(self._capacity, self._level_at(now_s) - cost)
        self._at_s = now_s

    def _level_at(self, now_s: float) -> float:
        return min(self._capacity, self._level + (now_s - self._at_s) * self._capacity / _SECONDS)


class Quota:
    """One key's limits and what is taken of them. For any thread: requests end on their engines' own.

    Args:
        name: the key's, for messages; None where the server asks for none, and all its clients have one quota.
    """

    def __init__(
        self, limits: KeyLimits, name: str | None = None, *, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        now_s = clock_s()
        self._who = "This server" if name is None else f"The API key {name!r}"
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._most = limits.max_concurrent_requests
        self._num_live = 0
        bounds = ("max_concurrent_requests", "requests_per_minute", "tokens_per_minute")
        self._num_refused = {name: 0 for name in bounds if getattr(limits, name) is not None}
        self._buckets = {
            name: (per_minute, Bucket(per_minute, now_s))
            for name, per_minute in (
                ("requests_per_minute", limits.requests_per_minute),
                ("tokens_per_minute", limits.tokens_per_minute),
            )
            if per_minute is not None
        }

    @property
    def num_live(self) -> int:
        """Requests that run or wait."""
        with self._lock:
            return self._num_live

    @property
    def num_refused(self) -> Mapping[str, int]:
        """By the limit, how often there was no room: what was answered with 429."""
        with self._lock:
            return dict(self._num_refused)

    def admit(self, num_requests: int, num_tokens: int) -> None:
        """Takes what some requests may cost, all of it or nothing; `end` is to be called for each of them.

        Raises:
            LimitError: there is no room now.
            InvalidRequestError: they are more at once than there ever is room for.
        """
        most = self._most
        if most is not None and num_requests > most:
            raise InvalidRequestError(
                f"{self._who} takes {most} prompts at once (max_concurrent_requests), got {num_requests}: send fewer "
                "in one request.",
                param="prompt",
            )
        costs = {"requests_per_minute": num_requests, "tokens_per_minute": num_tokens}
        with self._lock:
            now_s = self._clock_s()
            if most is not None and self._num_live + num_requests > most:
                self._num_refused["max_concurrent_requests"] += 1
                raise LimitError(
                    f"{self._who} has {self._num_live} requests that run or wait, and takes {most} at once "
                    "(max_concurrent_requests): wait for one to end.",
                    retry_after_s=_RETRY_AFTER_S,
                    reason="max_concurrent_requests",
                )
            for name, (per_minute, bucket) in self._buckets.items():
                wait_s = bucket.wait_s(costs[name], now_s)
                if wait_s > 0:
                    self._num_refused[name] += 1
                    raise LimitError(
                        f"{self._who} takes {per_minute} {name.partition('_')[0]} a minute ({name}), and this one "
                        f"would cost {costs[name]}: send it again in {math.ceil(wait_s)} s.",
                        retry_after_s=wait_s,
                        reason=name,
                    )
            self._num_live += num_requests
            for name, (_, bucket) in self._buckets.items():
                bucket.take(costs[name], now_s)

    def end(self, num_unused_tokens: int) -> None:
        """One request is over, and did not use so many of the tokens that were taken for it."""
        with self._lock:
            self._num_live -= 1
            self._give_back("tokens_per_minute", num_unused_tokens)

    def undo(self, num_requests: int, num_tokens: int) -> None:
        """Requests that were admitted here were refused by the engine: they have cost nothing."""
        with self._lock:
            self._num_live -= num_requests
            self._give_back("requests_per_minute", num_requests)
            self._give_back("tokens_per_minute", num_tokens)

    def _give_back(self, name: str, amount: int) -> None:
        if name in self._buckets:
            self._buckets[name][1].take(-amount, self._clock_s())
