"""Whether a preempted sequence is computed again, or its blocks are kept in host memory: what is cheaper here."""

from __future__ import annotations

from paged_backend.scheduler.plan import StepPlan, StepResult

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


def _mean(mean: float, value: float) -> float:
    return value if not mean else mean + _WEIGHT * (value - mean)
