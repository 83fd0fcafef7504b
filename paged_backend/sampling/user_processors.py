"""The user's own functions on logits: each sees a copy of its row, and whatever it does ends no other request."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from paged_backend.scheduler.plan import SamplingTask

logger = logging.getLogger(__name__)


def run_processors(logits: Tensor, tasks: Sequence[SamplingTask], rows: Sequence[int]) -> dict[int, str]:
    """Puts what the tasks' functions make of their rows in the rows' place.

    Args:
        logits: float32 [R, vocab_size]. A row whose functions fail becomes NaN, so that nothing is drawn from it.
        tasks: one for each row.
        rows: those to look at.

    Returns:
        By row, how a function failed.
    """
    faults = {}
    for row in rows:
        task = tasks[row]
        if not task.params.logits_processors:
            continue
        result, fault = _apply(task, logits[row])
        if fault is None:
            logits[row] = result
        else:
            logits[row] = math.nan
            faults[row] = fault
    return faults


def processor_name(processor: Any) -> str:
    """What a function, or an object that can be called, is called in messages."""
    kind = processor if hasattr(processor, "__qualname__") else type(processor)
    return f"{kind.__module__}:{kind.__qualname__}"


def _apply(task: SamplingTask, logits: Tensor) -> tuple[Tensor, str | None]:
    """One row after all of its functions, or what is wrong with them."""
    result: Any = logits.clone()
    for processor in cast("Sequence[Callable[..., Any]]", task.params.logits_processors):
        name = processor_name(processor)
        try:
            result = processor(task.prompt_token_ids, task.output_token_ids, result)
        except Exception as error:  # whatever a user's code raises is that request's alone
            logger.exception("the logits processor %s failed; its request ends", name)
            return logits, f"The logits processor {name} raised {type(error).__name__}: mend it, or its arguments."
        if not isinstance(result, Tensor) or result.dtype != torch.float32 or result.shape != logits.shape:
            return logits, f"The logits processor {name} must return float32 [{len(logits)}], like what it was given."
    return result, None
