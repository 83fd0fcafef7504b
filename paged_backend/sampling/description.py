"""Log-probabilities of tokens that nobody has to draw: those of prompts, and those that a request has named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from paged_backend.kernels.interface import Kernels
from paged_backend.kernels.sampling_batch import SampledBatch, SamplingBatch
from paged_backend.scheduler.plan import NOT_DRAWN, SampledToken, SamplingTask, ScoringTask, num_described


def score(kernels: Kernels, logits: Tensor, tasks: Sequence[ScoringTask]) -> list[list[SampledToken]]:
    """The tokens of each task, in full.

    Args:
        logits: float32 [R, vocab_size], a row for each token of each task, in their order.
    """
    tokens = [token for task in tasks for token in task.token_ids]
    counts = [task.num_logprobs for task in tasks for _ in task.token_ids]
    sampled = _describe(kernels, logits, [(token,) for token in tokens], counts)
    rows = iter(range(len(tokens)))
    return [
        [
            SampledToken(sampled.token_ids[row], sampled.logprobs[row], sampled.ranks[row], sampled.top.get(row, ()))
            for _, row in zip(task.token_ids, rows, strict=False)
        ]
        for task in tasks
    ]


def describe(
    kernels: Kernels, logits: Tensor, tasks: Sequence[tuple[SamplingTask, int]], token_ids: Sequence[int]
) -> Mapping[int, SampledToken]:
    """What those tasks that ask for it are to know of tokens drawn already, by place.

    Args:
        logits: float32 [R, vocab_size], a row for each task: the model's, as they came.
        tasks: each with its first place in token_ids.
        token_ids: the step's; what is NOT_DRAWN is not described.
    """
    wanted = [
        (row, task, start)
        for row, (task, start) in enumerate(tasks)
        if task.params.describes_tokens and token_ids[start] != NOT_DRAWN
    ]
    if not wanted:
        return {}
    drawn = [
        [token for token in token_ids[start : start + task.num_results] if token != NOT_DRAWN]
        for _, task, start in wanted
    ]
    asked = [tuple(task.params.logprob_token_ids or ()) for _, task, _ in wanted]
    given = [(*tokens, *ids) for tokens, ids in zip(drawn, asked, strict=True)]
    counts = [num_described(task.params.logprobs or 0) for _, task, _ in wanted]
    sampled = _describe(kernels, logits[[row for row, _, _ in wanted]], given, counts)
    described = {}
    first = 0
    for row, ((_, _, start), tokens, ids) in enumerate(zip(wanted, drawn, asked, strict=True)):
        last = first + len(tokens)
        places = range(last, last + len(ids))
        others = tuple((sampled.token_ids[i], sampled.logprobs[i], sampled.ranks[i]) for i in places)
        for i in range(first, last):
            token = sampled.token_ids[i], sampled.logprobs[i], sampled.ranks[i]
            described[start + i - first] = SampledToken(*token, sampled.top[row], others)
        first = last + len(ids)
    return described


def second_look(tasks: Sequence[SamplingTask]) -> SamplingBatch:
    """A batch of the tasks' rows of logits as they came: the tokens that each has named; one, of no interest, for those
    that have named none: there is one if the logits are numbers."""
    named = [tuple(task.params.logprob_token_ids or ()) for task in tasks]
    return _given([tokens or (0,) for tokens in named], [0 if tokens else -1 for tokens in named])


def add_asked(
    described: Mapping[int, SampledToken], looked: SampledBatch, tasks: Sequence[tuple[SamplingTask, int]]
) -> list[bool]:
    """Adds to drawn tokens what their tasks ask of others.

    Args:
        looked: what was found at the second look.
        tasks: that took it, each with the place of the token that it drew.

    Returns:
        For each whether its logits are numbers.
    """
    are_numbers = []
    first = 0
    for task, place in tasks:
        last = first + len(task.params.logprob_token_ids or (0,))
        if place in described and task.params.logprob_token_ids:
            described[place].asked = tuple(
                (looked.token_ids[i], looked.logprobs[i], looked.ranks[i]) for i in range(first, last)
            )
        are_numbers.append(looked.token_ids[first] != NOT_DRAWN)
        first = last
    return are_numbers


def _describe(kernels: Kernels, logits: Tensor, given: Sequence[Sequence[int]], counts: Sequence[int]) -> SampledBatch:
    return kernels.sample(logits, _given(given, counts))


def _given(given: Sequence[Sequence[int]], counts: Sequence[int]) -> SamplingBatch:
    num_rows = len(given)
    return SamplingBatch(seeds=[()] * num_rows, temperatures=[0.0] * num_rows, num_logprobs=counts, given=given)
