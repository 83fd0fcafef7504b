"""Which tasks change their logits and how; the arithmetic is in tests/kernels/test_sampling.py."""

from __future__ import annotations

from typing import Any

import pytest

from paged_backend.errors import InvalidRequestError
from paged_backend.sampling.processors import check_token_ids, logit_changes, unseen_changes
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import SamplingTask

VOCAB_SIZE = 50
PROMPT = (1, 2, 2, 3)
OUTPUT = (3, 4, 4, 4, 5)


def task(*, suppressed: tuple[int, ...] = (), output: tuple[int, ...] = OUTPUT, **params: Any) -> SamplingTask:
    return SamplingTask(SamplingParams(**params), (0,), PROMPT, (*PROMPT, *output), suppressed)


def test_plain_tasks_change_nothing() -> None:
    assert not task().changes_logits
    assert not task(temperature=0.0, top_k=3, top_p=0.5, min_p=0.1, logprobs=4).changes_logits


@pytest.mark.parametrize(
    "params",
    [
        {"repetition_penalty": 1.7},
        {"presence_penalty": 1.5},
        {"frequency_penalty": -0.5},
        {"logit_bias": {0: 5.0, 4: -3.5}},
        {"allowed_token_ids": [2, 4, 40]},
        {"suppressed": (0, 49)},
    ],
)
def test_each_parameter_is_handed_on(params: dict[str, Any]) -> None:
    one = task(**params)
    assert one.changes_logits or one.suppressed_token_ids
    changes = logit_changes(one)
    assert changes.prompt_token_ids is PROMPT
    assert changes.output_token_ids == (OUTPUT if one.penalises else ())
    assert one.penalises == any(name.endswith("penalty") for name in params)
    if not one.penalises:
        assert unseen_changes(one) == changes._replace(prompt_token_ids=())
    plain = logit_changes(task())
    (name,) = params
    field = {"suppressed": "suppressed_token_ids"}.get(name, name)
    wanted = tuple(params[name]) if name == "allowed_token_ids" else params[name]
    assert changes == plain._replace(**{field: wanted, "output_token_ids": changes.output_token_ids})


@pytest.mark.parametrize("name", ["allowed_token_ids", "stop_token_ids", "logit_bias"])
def test_token_ids_out_of_the_vocabulary(name: str) -> None:
    good: Any = {49: 1.0} if name == "logit_bias" else [0, 49]
    bad: Any = {50: 1.0} if name == "logit_bias" else [0, 50]
    check_token_ids(SamplingParams(**{name: good}), VOCAB_SIZE)
    with pytest.raises(InvalidRequestError, match="50") as caught:
        check_token_ids(SamplingParams(**{name: bad}), VOCAB_SIZE)
    assert caught.value.param == name
