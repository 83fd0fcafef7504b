"""What grammars make of a batch: the masks of its constrained rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from paged_backend.kernels.sampling_batch import SamplingBatch
from paged_backend.scheduler.plan import SamplingTask
from paged_backend.structured.token_masks import TokenMasks


def constrain(batch: SamplingBatch, tasks: Sequence[SamplingTask], rows: Sequence[int], masks: TokenMasks) -> None:
    """Adds the masks of rows whose tasks have matchers, and whose other changes are in the batch already.

    What must not be drawn before min_tokens may be drawn where a grammar, and the bad words, leave nothing else: it
    would never end. The bad words stay forbidden.
    """
    changes = dict(batch.changes)
    for place, row in enumerate(rows):
        task = tasks[row]
        assert task.matcher is not None
        masks.fill(place, task.matcher, task.token_ids, len(task.prompt_token_ids))
        change = changes[row]._replace(token_mask=place)
        suppressed = change.suppressed_token_ids  # the task's, and behind them those of the bad words
        num_early = len(task.suppressed_token_ids)
        if num_early and not masks.allows_others(place, suppressed):
            change = change._replace(suppressed_token_ids=suppressed[num_early:])
        changes[row] = change
    batch.changes = changes
    batch.token_masks = torch.from_numpy(masks.words)


def fault_of(task: SamplingTask) -> str | None:
    """What is wrong with a grammar that leaves nothing to draw, if that is known."""
    if task.matcher is None or not task.matcher.error:
        return None
    structure = task.params.structured_outputs
    assert structure is not None
    return f"{structure.param} is too complex to go on with: {task.matcher.error}. Simplify it."
