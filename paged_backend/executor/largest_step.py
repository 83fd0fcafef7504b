"""A step as large as any, to see how much memory steps take."""

from __future__ import annotations

from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import SamplingTask, ScheduledSequence, StepPlan


def largest_step(max_num_seqs: int, num_tokens: int, max_model_len: int, num_groups: int, block_size: int) -> StepPlan:
    """As many sequences as can run, that share a step's tokens among them, and all draw.

    Args:
        num_tokens: of the step, at least one for each sequence; fewer where max_model_len is in the way.
        num_groups: of layers.
        block_size: tokens in a block.

    Returns:
        A plan, whose sequences have no block in common; their block ids count from 0.
    """
    lines = []
    first = 0
    for index in range(max_num_seqs):
        length = min(num_tokens // max_num_seqs + (index < num_tokens % max_num_seqs), max_model_len)
        num_blocks = -(-length // block_size) * num_groups
        tokens = [0] * length
        params = SamplingParams(temperature=1.0, top_p=0.9, repetition_penalty=1.1)
        task = SamplingTask(params, (index,), tokens, tokens)
        lines.append(ScheduledSequence(index, tokens, 0, range(first, first + num_blocks), task))
        first += num_blocks
    return StepPlan(tuple(lines))


def num_blocks_of(plan: StepPlan) -> int:
    """That such a plan's sequences have together."""
    return sum(len(line.block_table) for line in plan.sequences)
