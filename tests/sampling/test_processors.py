"""Penalties, biases and token sets, against their definitions spelled out token by token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paged_backend.errors import InvalidRequestError
from paged_backend.sampling.processors import changes_logits, check_token_ids, process_logits
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import SamplingTask

VOCAB_SIZE = 50
PROMPT = (1, 2, 2, 3)
OUTPUT = (3, 4, 4, 4, 5)


def task(*, suppressed: tuple[int, ...] = (), output: tuple[int, ...] = OUTPUT, **params: Any) -> SamplingTask:
    return SamplingTask(SamplingParams(**params), (0,), 9, PROMPT, output, suppressed)


def logits(num_rows: int = 1) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(3).normal(size=(num_rows, VOCAB_SIZE)).astype(np.float32)


def expected(row: np.ndarray[Any, Any], one: SamplingTask) -> list[float]:
    params = one.params
    result = []
    for token in range(VOCAB_SIZE):
        value = float(row[token])
        allowed = params.allowed_token_ids
        if allowed is not None and token not in allowed:
            value = -np.inf
        if token in one.suppressed_token_ids:
            value = -np.inf
        value += params.logit_bias.get(token, 0.0)
        if token in one.prompt_token_ids or token in one.output_token_ids:
            value = value / params.repetition_penalty if value > 0 else value * params.repetition_penalty
        count = list(one.output_token_ids).count(token)
        value -= params.frequency_penalty * count
        value -= params.presence_penalty * (count > 0)
        result.append(value)
    return result


TASKS = [
    task(),
    task(repetition_penalty=1.7),
    task(repetition_penalty=0.6),
    task(presence_penalty=1.5),
    task(frequency_penalty=0.5),
    task(presence_penalty=-0.5, frequency_penalty=-1.0),
    task(logit_bias={0: 5.0, 4: -3.5}),
    task(logit_bias={4: 2.0}, repetition_penalty=2.0, presence_penalty=0.1),
    task(allowed_token_ids=[2, 4, 40]),
    task(suppressed=(0, 49)),
    task(allowed_token_ids=[2, 4, 4, 40], suppressed=(4,), logit_bias={4: 100.0}, frequency_penalty=1.0),
    task(output=(), presence_penalty=1.0, repetition_penalty=1.2),
]


@pytest.mark.parametrize("one", TASKS)
def test_one_row(one: SamplingTask) -> None:
    values = logits()
    want = expected(values[0], one)
    process_logits(values, [one], [0])
    assert values[0] == pytest.approx(want, rel=1e-6, abs=1e-6)


def test_rows_are_changed_together_and_apart() -> None:
    together = logits(len(TASKS))
    untouched = together.copy()
    rows = [row for row, one in enumerate(TASKS) if changes_logits(one)]
    assert rows == list(range(1, len(TASKS)))
    process_logits(together, TASKS, rows)
    assert np.array_equal(together[0], untouched[0])
    for row in rows:
        alone = untouched[row : row + 1].copy()
        process_logits(alone, [TASKS[row]], [0])
        assert np.array_equal(alone[0], together[row])


@pytest.mark.parametrize("name", ["allowed_token_ids", "stop_token_ids", "logit_bias"])
def test_token_ids_out_of_the_vocabulary(name: str) -> None:
    good: Any = {49: 1.0} if name == "logit_bias" else [0, 49]
    bad: Any = {50: 1.0} if name == "logit_bias" else [0, 50]
    check_token_ids(SamplingParams(**{name: good}), VOCAB_SIZE)
    with pytest.raises(InvalidRequestError, match="50") as caught:
        check_token_ids(SamplingParams(**{name: bad}), VOCAB_SIZE)
    assert caught.value.param == name
