"""Who may join the queue: its bounds, and whether a deadline can be met."""

from __future__ import annotations

from collections.abc import Sequence

from paged_backend.config import SchedulerConfig
from paged_backend.engine.pace import LONGEST_S, Pace
from paged_backend.engine.request import EngineRequest
from paged_backend.engine.stats import EngineStats
from paged_backend.errors import DeadlineError, InvalidRequestError, QueueFullError

_LEAST_RETRY_S = 1.0
"""Retry-After at least, and before anything has been measured."""

_TRUSTED_S = 5.0
"""How long an idle engine trusts what it has measured."""

_REMEDIES = {
    "timeout_s": "Allow more time or ask for less",
    "default_timeout_s": "Send a timeout_s of your own or ask for less",
    "max_timeout_s": "This server allows no more time: ask for less",
}


class Admission:
    """Decides at the door, from a snapshot of the engine and what has come in since.

    What has to wait though there is room on an idle engine may be sent again (429); what an idle engine would not take
    either is a wrong request (400).

    Args:
        config: the bounds.
        pace: what the engine has measured of itself.
    """

    def __init__(self, config: SchedulerConfig, pace: Pace) -> None:
        self._config = config
        self._pace = pace

    def check(self, entrants: Sequence[tuple[EngineRequest, int]], stats: EngineStats) -> None:
        """Refuses what the queue has no room for, and what cannot be over in time.

        Args:
            entrants: requests that ask to be let in together, and the output tokens of each one's samples at most,
                resolved.
            stats: a snapshot; what it says of the queue covers all that was let in before.

        Raises:
            QueueFullError: too many requests, or too many tokens of prompts, wait.
            DeadlineError: by what is measured now, a deadline passes before the request's end.
            InvalidRequestError: the same, if nothing else were there.
        """
        lengths = [len(request.prompt_token_ids) for request, _ in entrants]
        self._check_requests(len(lengths), stats)
        self._check_tokens(lengths, stats)
        for place, (request, max_tokens) in enumerate(entrants):
            if request.deadline_s is not None:
                timeout_s = request.deadline_s - request.arrival_s
                self._check_deadline(request, max_tokens, timeout_s, self._num_ahead(place, stats), stats)

    def _check_requests(self, count: int, stats: EngineStats) -> None:
        bound, most = self._config.max_num_queued_reqs, self._config.max_num_held_reqs
        if bound is None or most is None:
            return
        if count > most:
            raise InvalidRequestError(
                f"These are {count} requests; this server can hold {most}: send fewer at once.", param="prompt"
            )
        free = max(0, self._config.max_num_seqs - stats.num_running)
        num_too_many = stats.num_waiting + count - bound - free
        if num_too_many > 0:
            raise QueueFullError(
                f"The queue is full: {stats.num_running} running, {stats.num_waiting} waiting, and at most {bound} "
                "(max_num_queued_reqs) may wait. Try again later.",
                retry_after_s=self._retry_after_s(num_too_many),
                reason="max_num_queued_reqs",
            )

    def _check_tokens(self, lengths: Sequence[int], stats: EngineStats) -> None:
        bound = self._config.max_num_queued_tokens
        if bound is None:
            return
        num_too_many = self._num_queued_tokens(lengths, stats) - bound
        if num_too_many <= 0:
            return
        num_left = self._num_queued_tokens(lengths, EngineStats())
        what = "the prompt has" if len(lengths) == 1 else f"the {len(lengths)} prompts have"
        if num_left > bound:
            raise InvalidRequestError(
                f"The server has not enough room for so much at once: {what} {sum(lengths)} tokens, of which the first "
                f"step leaves {num_left:.0f}, and at most {bound} (max_num_queued_tokens) may wait. Send fewer "
                "prompts at once.",
                param="prompt",
            )
        num_requests, num_tokens = len(lengths), sum(lengths)
        if stats.num_waiting:
            num_requests, num_tokens = stats.num_waiting, stats.num_waiting_tokens
        raise QueueFullError(
            f"The queue is full: {stats.num_waiting_tokens} tokens wait, {what} {sum(lengths)}, and at most {bound} "
            "(max_num_queued_tokens) may wait. Try again later.",
            retry_after_s=self._retry_after_s(min(num_too_many * num_requests / max(num_tokens, 1), num_requests)),
            reason="max_num_queued_tokens",
        )

    def _num_queued_tokens(self, lengths: Sequence[int], stats: EngineStats) -> float:
        """Tokens of prompts that wait when the next step has begun what it can, with prompts of these lengths behind.

        What the step leaves of those that wait already is estimated from their mean. Where nobody waits, the first one
        counts as begun, or a long one could wait for that for ever.
        """
        slots = max(0, self._config.max_num_seqs - stats.num_running)
        budget = self._config.max_num_batched_tokens - stats.num_running
        num_waiting, num_tokens = stats.num_waiting, stats.num_waiting_tokens
        num_left: float = num_tokens
        if num_waiting:
            num_left *= 1.0 - min(1.0, slots / num_waiting, budget / max(num_tokens, 1))
        for length in lengths:
            if num_waiting and (num_waiting >= slots or num_tokens >= budget):
                num_left += length
            num_waiting += 1
            num_tokens += length
        return num_left

    def _num_ahead(self, place: int, stats: EngineStats) -> int:
        """How many are in the queue before the one that comes in after so many others; -1 where there is none."""
        if stats.num_waiting:
            return stats.num_waiting + place
        free = max(0, self._config.max_num_seqs - stats.num_running)
        return place - free if place and place >= free else -1

    def _check_deadline(
        self, request: EngineRequest, max_tokens: int, timeout_s: float, num_ahead: int, stats: EngineStats
    ) -> None:
        is_idle = not stats.num_running and not stats.num_waiting
        if is_idle and request.arrival_s - self._pace.stepped_s > _TRUSTED_S:
            # Only a step measures anew: after a slow one, refusals alone would never end.
            return
        name = request.deadline_by
        alone_s = self._compute_s(request, max_tokens, 1, stats)
        if alone_s > timeout_s:
            raise InvalidRequestError(
                f"{name} ({timeout_s:.3g}) cannot be met: by the present estimate the request needs {alone_s:.3g} s to "
                f"be computed with nothing else to do. {_REMEDIES[name]}.",
                param=None if name == "max_timeout_s" else "timeout_s",
            )
        queue_s = 0.0
        if num_ahead >= 0:
            # Where the order is not that of arrival, it may turn out to be the next.
            place = num_ahead + 1 if self._config.scheduling_policy == "fcfs" else 1
            queue_s = self._pace.queue_s(place) or 0.0
        compute_s = self._compute_s(request, max_tokens, stats.num_running + 1, stats)
        if queue_s + compute_s > timeout_s:
            raise DeadlineError(
                f"{name} ({timeout_s:.3g}) cannot be met: by the present estimate the request needs "
                f"{queue_s:.3g} s in the queue, behind {max(num_ahead, 0)} others, and {compute_s:.3g} s to be "
                f"computed. {_REMEDIES[name]}, or try again later.",
                retry_after_s=min(max(_LEAST_RETRY_S, queue_s + compute_s - timeout_s), LONGEST_S),
                reason=name,
                param=None if name == "max_timeout_s" else "timeout_s",
            )

    def _compute_s(self, request: EngineRequest, max_tokens: int, num_running: int, stats: EngineStats) -> float:
        """Seconds from its first step to its last, with so many sequences in each, itself among them."""
        missed = 1.0
        if stats.prefix_cache_queries:
            missed -= stats.prefix_cache_hits / stats.prefix_cache_queries
        return self._pace.compute_s(
            round(missed * len(request.prompt_token_ids)),
            least_output_tokens(request, max_tokens),
            num_running=min(num_running, self._config.max_num_seqs),
            budget=self._config.max_num_batched_tokens,
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
