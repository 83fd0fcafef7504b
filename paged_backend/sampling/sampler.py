"""Draws a step's tokens, all rows at once, each as if it were alone: from tasks to columns, and back to tokens."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.interface import Kernels
from paged_backend.kernels.sampling_batch import SampledBatch, SamplingBatch
from paged_backend.sampling.constraints import constrain, fault_of
from paged_backend.sampling.description import describe
from paged_backend.sampling.processors import logit_changes, unseen_changes
from paged_backend.sampling.user_processors import run_processors
from paged_backend.scheduler.plan import NOT_DRAWN, SampledToken, SamplingTask, StepResult
from paged_backend.structured.token_masks import TokenMasks

logger = logging.getLogger(__name__)

_OURS = ""
"""In place of a request's fault: the kernels refuse what we have made of it."""

NOTHING_LEFT = "The request's parameters leave no token that could be drawn: allow more of them."
"""The fault of a request of whose logits, which are numbers, nothing can be drawn."""


def sample(
    kernels: Kernels, logits: Tensor, tasks: Sequence[SamplingTask], masks: TokenMasks | None = None
) -> StepResult:
    """Draws one token per row and seed, or finds a row's candidates.

    Args:
        logits: float32 [R, vocab_size]; rows with functions of the user's are changed.
        tasks: one for each row. Nothing is drawn for those that the kernels refuse, or whose functions fail.
        masks: memory for those of tasks with grammars; None where there are none.
    """
    if not tasks:
        return StepResult(())
    apart = [row for row, task in enumerate(tasks) if task.stands_apart]
    if not apart:
        result = _draw(kernels, logits, tasks, masks)
        return _blame(result, logits, tasks, {}) if NOT_DRAWN in result.token_ids else result
    raw = logits[apart]  # a copy
    faults = run_processors(logits, tasks, apart)
    result = _draw(kernels, logits, tasks, masks)
    if NOT_DRAWN in result.token_ids:
        logits[apart] = raw
        result = _blame(result, logits, tasks, faults)
    starts = _starts(tasks)
    described = describe(kernels, raw, [(tasks[row], starts[row]) for row in apart], result.token_ids)
    return replace(result, described={**result.described, **described})


def _draw(kernels: Kernels, logits: Tensor, tasks: Sequence[SamplingTask], masks: TokenMasks | None) -> StepResult:
    try:
        sampled = kernels.sample(logits, build_batch(tasks, masks))
    except KernelError:
        if len(tasks) > 1:
            return _draw_apart(kernels, logits, tasks, masks)
        logger.exception("a row cannot be sampled; its request ends")
        num_results = tasks[0].num_results
        return StepResult((NOT_DRAWN,) * num_results, scores=(-math.inf,) * num_results, faults={0: _OURS})
    return StepResult(sampled.token_ids, described_tokens(sampled, tasks) if sampled.logprobs else {}, sampled.scores)


def _draw_apart(
    kernels: Kernels, logits: Tensor, tasks: Sequence[SamplingTask], masks: TokenMasks | None
) -> StepResult:
    """`_draw` row by row: one that is refused leaves nothing to draw, and its neighbours go on."""
    token_ids: list[int] = []
    described: dict[int, SampledToken] = {}
    scores: list[float] = []
    faults: dict[int, str] = {}
    for row, task in enumerate(tasks):
        result = _draw(kernels, logits[row : row + 1], (task,), masks)
        faults.update({len(token_ids) + place: fault for place, fault in result.faults.items()})
        described.update({len(token_ids) + place: token for place, token in result.described.items()})
        token_ids += result.token_ids
        scores += result.scores or (-math.inf,) * len(result.token_ids)
    return StepResult(token_ids, described, scores, faults=faults)


def build_batch(
    tasks: Sequence[SamplingTask], masks: TokenMasks | None = None, *, are_counted: bool = False
) -> SamplingBatch:
    """The tasks as columns. Runs at every step over all rows, hence the comprehensions.

    Args:
        are_counted: their tokens are counted where they are drawn: without penalties, and nobody looks at a token that
            may be unknown yet.
    """
    params = [task.params for task in tasks]
    temperatures = [p.temperature for p in params]
    batch = SamplingBatch(seeds=[task.seeds for task in tasks], temperatures=temperatures)
    if any(temperatures):
        batch.positions = [len(task.token_ids) for task in tasks]
        batch.top_k = [p.top_k for p in params]
        batch.top_p = [p.top_p for p in params]
        batch.min_p = [p.min_p for p in params]
    if () in batch.seeds:
        batch.num_best = [task.num_candidates for task in tasks]
    counts = [task.num_logprobs for task in tasks]
    if max(counts) >= 0:
        batch.num_logprobs = counts
    if are_counted:
        changed = [row for row, task in enumerate(tasks) if task.changes_more or task.suppressed_token_ids]
        batch.changes = {row: unseen_changes(tasks[row]) for row in changed}
        return batch
    changed = [row for row, task in enumerate(tasks) if task.changes_logits or task.suppressed_token_ids]
    if changed:
        batch.changes = {row: logit_changes(tasks[row]) for row in changed}
        constrained = [row for row in changed if tasks[row].matcher is not None]
        if constrained:
            assert masks is not None
            constrain(batch, tasks, constrained, masks)
    return batch


def described_tokens(sampled: SampledBatch, tasks: Sequence[SamplingTask]) -> dict[int, SampledToken]:
    """By its place among all, each drawn token of the tasks that ask for logprobs."""
    described = {}
    end = 0
    for row, task in enumerate(tasks):
        start, end = end, end + task.num_results
        if task.num_logprobs < 0:
            continue
        for place in range(start, end):
            if sampled.token_ids[place] == NOT_DRAWN:
                break
            token = sampled.token_ids[place], sampled.logprobs[place], sampled.ranks[place]
            described[place] = SampledToken(*token, sampled.top[row])
    return described


def _blame(result: StepResult, logits: Tensor, tasks: Sequence[SamplingTask], faults: Mapping[int, str]) -> StepResult:
    """Says of rows that nothing was drawn for whether their requests are at fault: the model's logits are numbers.

    Args:
        faults: by row, what is known already.
    """
    by_place = {}
    for row, start in enumerate(_starts(tasks)):
        is_ours = result.faults.get(start) == _OURS
        if result.token_ids[start] == NOT_DRAWN and not is_ours and math.isfinite(logits[row].max()):
            by_place[start] = faults.get(row) or fault_of(tasks[row]) or NOTHING_LEFT
    return replace(result, faults=by_place)


def _starts(tasks: Sequence[SamplingTask]) -> list[int]:
    """Each row's first place in the results."""
    return [0, *accumulate(task.num_results for task in tasks)][:-1]
