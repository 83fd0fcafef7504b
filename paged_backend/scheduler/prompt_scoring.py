"""Prompts whose tokens' log-probabilities are wanted: how far each is, and what a step computes of them."""

from __future__ import annotations

from collections.abc import Iterable

from paged_backend.kv.block_table import ALL_TOKENS
from paged_backend.kv.manager import KVCacheManager
from paged_backend.scheduler.plan import ScoringTask, num_described
from paged_backend.scheduler.sequence import Sequence, SequenceStatus


class PromptScoring:
    """Keeps the sequences whose prompts are not scored to their end.

    A token is told of by the logits after the token before it, so the first has none, and those after the last prompt
    token are the first draw's. What a sequence finds computed has no logits: its table finds no more than what was
    scored already, when it was computed before (`BlockTable.num_findable`). So it is at first, and after a preemption.

    Args:
        max_rows: most tokens that a step scores, of all prompts together, but for one of each that runs: their logits
            are in memory at once.
    """

    def __init__(self, max_rows: int = ALL_TOKENS) -> None:
        self._max_rows = max_rows
        self._num_left = max_rows
        self._num_scored: dict[Sequence, int] = {}  # as many tokens after the first
        self._planned: list[tuple[Sequence, int]] = []

    def __len__(self) -> int:
        return len(self._num_scored)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._num_scored

    def enter(self, sequence: Sequence) -> None:
        """A new request's sequence, before it waits for its first step."""
        params = sequence.params
        if params.skips_prefix_cache:
            sequence.table.num_findable = 0
        if params.prompt_logprobs is not None and len(sequence.prompt_token_ids) > 1:
            self._num_scored[sequence] = 0

    def forget(self, sequence: Sequence) -> None:
        """It has ended; any sequence may be named."""
        self._num_scored.pop(sequence, None)

    def begin_step(self) -> None:
        """Nothing of the next step is planned yet."""
        self._num_left = self._max_rows

    def at_most(self, sequence: Sequence, num_new: int) -> int:
        """How many of its next tokens a step may compute: one at least."""
        num_scored = self._num_scored.get(sequence)
        if num_scored is None:
            return num_new
        again = max(num_scored - sequence.table.num_computed, 0)
        num_new = min(num_new, again + max(self._num_left, 1))
        self._num_left -= max(num_new - again, 0)
        return num_new

    def num_missing_blocks(self, kv: KVCacheManager) -> int:
        """Blocks that those of its prompts which run were admitted for, and do not hold yet."""
        num_missing = 0
        for sequence in self._num_scored:
            if sequence.status is SequenceStatus.RUNNING:
                num_tokens = min(len(sequence.table.token_ids) + 1, sequence.max_cached_tokens)
                num_missing += max(kv.blocks_for(num_tokens) - sequence.table.num_held, 0) + sequence.num_extra_blocks
        return num_missing

    def plan(self, in_flight: Iterable[Sequence]) -> tuple[ScoringTask, ...]:
        """What the step's sequences, their lines filled in, give of their prompts."""
        tasks = []
        for index, sequence in enumerate(in_flight):
            num_scored = self._num_scored.get(sequence)
            if num_scored is None:
                continue
            start = sequence.line.num_computed_tokens
            end = start + len(sequence.line.token_ids)
            tokens = sequence.prompt_token_ids[num_scored + 1 : end + 1]
            if not tokens:
                continue
            num_logprobs = sequence.params.prompt_logprobs
            assert num_logprobs is not None and start <= num_scored, "a prompt's token was computed, but not scored"
            num_logprobs = num_described(num_logprobs)
            tasks.append(ScoringTask(sequence.request_id, index, num_scored - start, tokens, num_logprobs))
            self._planned.append((sequence, len(tokens)))
        return tuple(tasks)

    def settle(self, *, done: bool) -> None:
        """Ends a step: what it was to score has been, or it failed."""
        for sequence, num_tokens in self._planned:
            num_scored = self._num_scored.get(sequence)
            if num_scored is None or not done:
                continue
            num_scored += num_tokens
            if num_scored + 1 < len(sequence.prompt_token_ids):
                self._num_scored[sequence] = sequence.table.num_findable = num_scored
            else:
                del self._num_scored[sequence]
                sequence.table.num_findable = ALL_TOKENS
        self._planned.clear()

    def started(self, sequence: Sequence) -> None:
        """It was admitted: if its blocks go again, it finds what it can."""
        if sequence not in self._num_scored:
            sequence.table.num_findable = ALL_TOKENS
