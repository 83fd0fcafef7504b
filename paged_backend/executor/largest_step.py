"""A step as large as any, to see how much memory steps take, and smaller ones, to have seen every kind."""

from __future__ import annotations

from collections.abc import Iterator

from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import SamplingTask, ScheduledSequence, StepPlan


def largest_step(max_num_seqs: int, num_tokens: int, max_model_len: int, num_groups: int, block_size: int) -> StepPlan:
    """As many sequences as can run, that share a step's tokens among them, and all draw in the way that takes the most.

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
        task = SamplingTask(
            SamplingParams(temperature=1.0, top_p=0.9, presence_penalty=1.0, logprobs=0), (index,), tokens, tokens
        )
        lines.append(ScheduledSequence(index, tokens, 0, range(first, first + num_blocks), task))
        first += num_blocks
    return StepPlan(tuple(lines))


def smaller_steps(
    max_num_seqs: int, num_tokens: int, max_model_len: int, num_groups: int, block_size: int
) -> Iterator[StepPlan]:
    """A decode behind as many tokens as there may be, whose blocks are all the first one; and steps of 1, 2, 4, 8 ...
    tokens up to those of `largest_step`, whose arguments these are: kernels are launched in another way for each order
    of magnitude. Sequences have two tokens, or more where there may be no more of them."""
    table = [0] * (-(-max_model_len // block_size) * num_groups)
    yield StepPlan((ScheduledSequence(0, [0], max_model_len - 1, table, None),))
    size = 1
    while size < num_tokens:
        num_seqs = min(max(size // 2, 1), max_num_seqs)
        yield largest_step(num_seqs, size, max_model_len, num_groups, block_size)
        size *= 2


def num_blocks_of(plan: StepPlan) -> int:
    """That such a plan's sequences have together."""
    return sum(len(line.block_table) for line in plan.sequences)
