"""Who gives way where blocks run out, and whether it is computed again or its blocks are kept in host memory."""

from __future__ import annotations

from paged_backend.kv.manager import KVCacheManager
from paged_backend.scheduler.plan import StepPlan, StepResult
from paged_backend.scheduler.roster import Roster
from paged_backend.scheduler.sequence import Sequence, SequenceStatus

_WEIGHT = 0.2
"""Of the newest measurement in the running means."""

_MIN_PROMPT_TOKENS = 16
"""A step that computes fewer tokens beyond one a sequence does not tell what computing a prompt costs."""

_BLOCK_S = 1e-4
"""Seconds to move a block, until the first was moved."""


class PreemptionCosts:
    """Two running means, of what a token costs to compute and a block to move, decide.

    Swapping moves each block twice, out now and in later. Computing again costs what prompts cost here, which is what
    steps with long chunks measure; every sequence that can be preempted was in one, so there is a measurement. That
    blocks may still be found when the sequence comes back is left out: they were wanted by others, or it would not
    have been preempted.

    Args:
        mode: "recompute" or "swap" decide by themselves, "auto" by cost.
    """

    __slots__ = ("_block_s", "_mode", "_token_s")

    def __init__(self, mode: str) -> None:
        self._mode = mode
        self._token_s = 0.0
        self._block_s = 0.0

    def observe(self, plan: StepPlan, result: StepResult) -> None:
        """Learns from a step."""
        num_prompt_tokens = plan.num_tokens - len(plan.sequences)
        if num_prompt_tokens >= _MIN_PROMPT_TOKENS and result.compute_s > 0:
            self._token_s = _mean(self._token_s, result.compute_s / plan.num_tokens)
        if plan.transfers and result.transfer_s > 0:
            num_blocks = len(plan.transfers.swap_outs) + len(plan.transfers.swap_ins)
            if num_blocks:
                self._block_s = _mean(self._block_s, result.transfer_s / num_blocks)

    def prefers_swap(self, num_computed_tokens: int, num_blocks: int) -> bool:
        """Whether to move a sequence's blocks rather than to compute its tokens again."""
        if self._mode != "auto":
            return self._mode == "swap"
        return 2 * num_blocks * (self._block_s or _BLOCK_S) < num_computed_tokens * self._token_s


class Preemption:
    """Takes blocks away from the last running sequence, which then waits to be computed again or to be swapped in.

    Attributes:
        costs: what recomputing and swapping take here.
        num_preemptions, num_swaps: preemptions so far, and those of them that swapped blocks out.

    Args:
        roster: the sequences.
        kv: the block manager.
        mode: `SchedulerConfig.preemption_mode`.
    """

    __slots__ = ("_kv", "_roster", "costs", "num_preemptions", "num_swaps")

    def __init__(self, roster: Roster, kv: KVCacheManager, mode: str) -> None:
        self.costs = PreemptionCosts(mode)
        self.num_preemptions = self.num_swaps = 0
        self._roster = roster
        self._kv = kv

    def preempt_last(self) -> int:
        """Preempts the last running sequence, with all of its beam search; how many sequences that were."""
        running = self._roster.running
        last = self._roster.waiting.last(running)
        if last.group is None:
            running.remove(last)
            self._preempt(last)
            return 1
        family = last.group.sequences
        running[:] = [sequence for sequence in running if sequence not in family]
        self._preempt(last.group.fold())
        return len(family)

    def _preempt(self, sequence: Sequence) -> None:
        table = sequence.table
        swapped = self.costs.prefers_swap(table.num_computed, table.num_held) and self._kv.swap_out(table)
        self.num_swaps += swapped
        table.usage.preempt(swapped=swapped)
        if not swapped:
            self._kv.free(table)
        self._roster.waiting.stop(sequence)
        sequence.status = SequenceStatus.WAITING
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self._roster.waiting.push(sequence)


def _mean(mean: float, value: float) -> float:
    return value if not mean else mean + _WEIGHT * (value - mean)
