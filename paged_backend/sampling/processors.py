"""What a request's parameters do to its logits before a token is drawn. Definitions and order are vLLM's:
allowed tokens, suppressed tokens, logit bias, then penalties.

All changes are sparse: they touch the listed tokens of a row, gathered over all rows into a few array
operations. Each is one rounding per element at most, so that a row comes out the same beside whatever others.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from paged_backend.errors import InvalidRequestError
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import SamplingTask

Logits = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int64]


def check_token_ids(params: SamplingParams, vocab_size: int) -> None:
    """Refuses token ids that the model does not have; `process_logits` takes them as given.

    Raises:
        InvalidRequestError: an id in allowed_token_ids, logit_bias or stop_token_ids is not the model's.
    """
    for name in ("allowed_token_ids", "logit_bias", "stop_token_ids"):
        for token in getattr(params, name) or ():
            if not 0 <= token < vocab_size:
                raise InvalidRequestError(
                    f"{name} holds token id {token}, but the model's ids are 0 to {vocab_size - 1}.",
                    param=name,
                )


def changes_logits(task: SamplingTask) -> bool:
    """Whether anything but temperature and filters applies to this task."""
    params = task.params
    return bool(
        task.suppressed_token_ids
        or params.logit_bias
        or params.repetition_penalty != 1.0
        or params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
        or params.allowed_token_ids is not None
    )


def process_logits(logits: Logits, tasks: Sequence[SamplingTask], rows: Sequence[int]) -> None:
    """Applies the parameters of some rows. Changes logits in place.

    Args:
        logits: float32 [R, vocab_size].
        tasks: one for each row of logits.
        rows: the rows to change.
    """
    for row in rows:
        allowed = tasks[row].params.allowed_token_ids
        if allowed is not None:
            ids = np.fromiter(allowed, np.int64, len(allowed))
            kept = logits[row, ids]
            logits[row] = -np.inf
            logits[row, ids] = kept
    _suppress(logits, tasks, rows)
    _add_bias(logits, tasks, rows)
    _penalise(logits, tasks, rows)


def _suppress(logits: Logits, tasks: Sequence[SamplingTask], rows: Sequence[int]) -> None:
    where, ids = _flatten(rows, [tasks[row].suppressed_token_ids for row in rows])
    if len(ids):
        logits[where, ids] = -np.inf


def _add_bias(logits: Logits, tasks: Sequence[SamplingTask], rows: Sequence[int]) -> None:
    biases = [tasks[row].params.logit_bias for row in rows]
    where, ids = _flatten(rows, [tuple(bias) for bias in biases])
    if len(ids):
        added = np.fromiter(chain.from_iterable(bias.values() for bias in biases), np.float32, len(ids))
        logits[where, ids] += added


def _penalise(logits: Logits, tasks: Sequence[SamplingTask], rows: Sequence[int]) -> None:
    """Repetition over prompt and output; presence and frequency over the output alone."""
    repeating = [row for row in rows if tasks[row].params.repetition_penalty != 1.0]
    if repeating:
        seen = [np.union1d(tasks[row].prompt_token_ids, tasks[row].output_token_ids) for row in repeating]
        where, ids = _join(repeating, [tokens.astype(np.int64) for tokens in seen])
        penalty = _per_row(tasks, repeating, "repetition_penalty")[where]
        values = logits[where, ids]
        logits[where, ids] = np.where(values > 0, values / penalty, values * penalty)
    counting = [
        row
        for row in rows
        if (tasks[row].params.presence_penalty != 0.0 or tasks[row].params.frequency_penalty != 0.0)
        and tasks[row].output_token_ids
    ]
    if counting:
        counted = [np.unique(np.asarray(tasks[row].output_token_ids, np.int64), return_counts=True) for row in counting]
        where, ids = _join(counting, [tokens for tokens, _ in counted])
        counts = np.concatenate([numbers for _, numbers in counted]).astype(np.float32)
        values = logits[where, ids]
        values -= _per_row(tasks, counting, "frequency_penalty")[where] * counts
        values -= _per_row(tasks, counting, "presence_penalty")[where]
        logits[where, ids] = values


def _per_row(tasks: Sequence[SamplingTask], rows: Sequence[int], name: str) -> Logits:
    """float32 [R]: a parameter of the given rows, at their own indices."""
    values = np.zeros(len(tasks), np.float32)
    values[list(rows)] = [getattr(tasks[row].params, name) for row in rows]
    return values


def _flatten(rows: Sequence[int], tokens: Sequence[Sequence[int]]) -> tuple[_Ints, _Ints]:
    """Row and token index of each of the rows' tokens, end to end."""
    lengths = [len(ids) for ids in tokens]
    flat = np.fromiter(chain.from_iterable(tokens), np.int64, sum(lengths))
    return np.repeat(np.asarray(rows, np.int64), lengths), flat


def _join(rows: Sequence[int], tokens: Sequence[_Ints]) -> tuple[_Ints, _Ints]:
    """Like `_flatten`, for arrays."""
    return np.repeat(np.asarray(rows, np.int64), [len(ids) for ids in tokens]), np.concatenate(tokens)
