"""Who may join the queue: its bounds, and whether a deadline can be met."""

from __future__ import annotations

from paged_backend.config import SchedulerConfig
from paged_backend.engine.pace import LONGEST_S, Pace
from paged_backend.engine.request import EngineRequest
from paged_backend.engine.stats import EngineStats
from paged_backend.errors import DeadlineError, QueueFullError

_LEAST_RETRY_S = 1.0
"""Retry-After at least, and before anything has been measured."""

_TRUSTED_S = 5.0
"""How long an idle engine trusts what it has measured."""


class Admission:
    """Decides at the door, from a snapshot of the engine and what has come in since.

    Args:
        config: the bounds.
        pace: what the engine has measured of itself.
    """

    def __init__(self, config: SchedulerConfig, pace: Pace) -> None:
        self._config = config
        self._pace = pace

    def check(self, request: EngineRequest, max_tokens: int, stats: EngineStats) -> None:
        """Refuses what the queue has no room for, and what cannot be over in time.

        Args:
            request: what asks to be let in.
            max_tokens: output tokens of each of its samples at most, resolved.
            stats: a snapshot; what it says of the queue covers all that was let in before.

        Raises:
            QueueFullError: too many requests, or too many tokens of prompts, wait.
            DeadlineError: by what is measured now, its deadline passes before its end.
        """
        self._check_requests(stats)
        self._check_tokens(request, stats)
        if request.deadline_s is not None:
            self._check_deadline(request, max_tokens, request.deadline_s - request.arrival_s, stats)

    def _check_requests(self, stats: EngineStats) -> None:
        bound = self._config.max_num_queued_reqs
        if bound is None:
            return
        free = max(0, self._config.max_num_seqs - stats.num_running)
        num_too_many = stats.num_waiting + 1 - bound - free
        if num_too_many > 0:
            raise QueueFullError(
                f"The queue is full: {stats.num_running} running, {stats.num_waiting} waiting, and at most {bound} "
                "(max_num_queued_reqs) may wait. Try again later.",
                retry_after_s=self._retry_after_s(num_too_many),
                reason="max_num_queued_reqs",
            )

    def _check_tokens(self, request: EngineRequest, stats: EngineStats) -> None:
        bound = self._config.max_num_queued_tokens
        if bound is None or stats.num_waiting == 0:  # with nobody before it, it does not queue
            return
        num_too_many = stats.num_waiting_tokens + len(request.prompt_token_ids) - bound
        if num_too_many > 0:
            mean = stats.num_waiting_tokens / stats.num_waiting
            raise QueueFullError(
                f"The queue is full: {stats.num_waiting_tokens} tokens wait, the prompt has "
                f"{len(request.prompt_token_ids)}, and at most {bound} (max_num_queued_tokens) may wait. "
                "Try again later.",
                retry_after_s=self._retry_after_s(min(num_too_many / mean, stats.num_waiting)),
                reason="max_num_queued_tokens",
            )

    def _check_deadline(self, request: EngineRequest, max_tokens: int, timeout_s: float, stats: EngineStats) -> None:
        is_idle = not stats.num_running and not stats.num_waiting
        if is_idle and request.arrival_s - self._pace.stepped_s > _TRUSTED_S:
            # Only a step measures anew: after a slow one, refusals alone would never end.
            return
        queue_s = 0.0
        if stats.num_waiting:
            # Where the order is not that of arrival, it may turn out to be the next.
            place = stats.num_waiting + 1 if self._config.scheduling_policy == "fcfs" else 1
            queue_s = self._pace.queue_s(place) or 0.0
        missed = 1.0
        if stats.prefix_cache_queries:
            missed -= stats.prefix_cache_hits / stats.prefix_cache_queries
        compute_s = self._pace.compute_s(
            round(missed * len(request.prompt_token_ids)),
            least_output_tokens(request, max_tokens),
            num_running=min(stats.num_running + 1, self._config.max_num_seqs),
            budget=self._config.max_num_batched_tokens,
        )
        if queue_s + compute_s > timeout_s:
            raise DeadlineError(
                f"timeout_s ({timeout_s:.3g}) cannot be met: by the present estimate the request needs "
                f"{queue_s:.3g} s in the queue, behind {stats.num_waiting} others, and {compute_s:.3g} s to be "
                "computed. Allow more time, ask for less, or try again later.",
                retry_after_s=min(max(_LEAST_RETRY_S, queue_s + compute_s - timeout_s), LONGEST_S),
                reason="timeout_s",
                param="timeout_s",
            )

    def _retry_after_s(self, num_requests: float) -> float:
        """Seconds until so many requests have left the queue."""
        return max(_LEAST_RETRY_S, self._pace.queue_s(num_requests) or 0.0)


def least_output_tokens(request: EngineRequest, max_tokens: int) -> int:
    """Tokens that a sample has at least: all of them, where nothing can end it before."""
    params = request.params
    if params.ignore_eos and not params.stop and not params.stop_token_ids:
        return max_tokens
    return max(1, params.min_tokens)
