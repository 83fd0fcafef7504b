"""Wrong arguments of sampling are named, and nothing crashes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paged_backend.errors import KernelError
from paged_backend.kernels.sampling_batch import LogitChanges, SamplingBatch
from tests.kernels.sampling_case import ALL, CPU, EVERY, Sample, make_batch

implementations = pytest.mark.parametrize("sample", EVERY.values(), ids=EVERY.keys())
VOCAB_SIZE = 300

WRONG_COLUMNS: list[tuple[str, Any]] = [
    ("seeds", [(1,)]),
    ("seeds", [(1,), (2,), (3,)]),
    ("seeds", [(1,), ()]),
    ("temperatures", [1.0]),
    ("temperatures", [1.0, -0.1]),
    ("temperatures", [1.0, math.nan]),
    ("temperatures", [1.0, math.inf]),
    ("positions", []),
    ("positions", [0, -1]),
    ("top_k", [1]),
    ("top_k", [1, -2]),
    ("top_k", [1, -(2**70)]),
    ("top_p", [0.5, 0.0]),
    ("top_p", [0.5, 1.1]),
    ("top_p", [0.5, math.nan]),
    ("min_p", [0.5, -0.1]),
    ("min_p", [0.5, math.nan]),
    ("num_logprobs", [0, -2]),
    ("num_logprobs", [0]),
]

WRONG_TYPES: list[tuple[str, Any]] = [
    ("seeds", [(1,), 5]),
    ("seeds", [(1,), ("a",)]),
    ("seeds", [(1,), (1.5,)]),
    ("seeds", [(1,), "12"]),
    ("temperatures", ["a", 1.0]),
    ("temperatures", None),
    ("positions", [0, 2**70]),
    ("positions", [0, 1.5]),
    ("top_k", [0, None]),
    ("top_p", [0.5, "x"]),
    ("min_p", 3),
    ("num_logprobs", [1, 1.5]),
]

WRONG_CHANGES: list[tuple[str, LogitChanges]] = [
    ("allowed_token_ids", LogitChanges(allowed_token_ids=[1, VOCAB_SIZE])),
    ("suppressed_token_ids", LogitChanges(suppressed_token_ids=[-1])),
    ("logit_bias", LogitChanges(logit_bias={VOCAB_SIZE: 1.0})),
    ("logit_bias", LogitChanges(logit_bias={1: math.nan})),
    ("repetition_penalty", LogitChanges(repetition_penalty=0.0)),
    ("repetition_penalty", LogitChanges(repetition_penalty=math.inf)),
    ("presence_penalty", LogitChanges(presence_penalty=math.nan)),
    ("frequency_penalty", LogitChanges(frequency_penalty=-math.inf)),
    ("prompt_token_ids", LogitChanges(repetition_penalty=2.0, prompt_token_ids=[2**31])),
    ("output_token_ids", LogitChanges(presence_penalty=2.0, output_token_ids=[VOCAB_SIZE])),
    ("token_mask", LogitChanges(token_mask=0)),
    ("token_mask", LogitChanges(token_mask=-2)),
]


def logits(num_rows: int = 2) -> torch.Tensor:
    return torch.randn(num_rows, VOCAB_SIZE)


@implementations
@pytest.mark.parametrize(("name", "value"), WRONG_COLUMNS)
def test_columns(sample: Sample, name: str, value: Any) -> None:
    with pytest.raises(KernelError, match=name):
        sample(logits(), make_batch(2, **{name: value}))


@implementations
@pytest.mark.parametrize(("name", "value"), WRONG_TYPES)
def test_types(sample: Sample, name: str, value: Any) -> None:
    batch = make_batch(2)
    setattr(batch, name, value)
    with pytest.raises(KernelError, match=name):
        sample(logits(), batch)


@implementations
@pytest.mark.parametrize(("name", "changes"), WRONG_CHANGES)
def test_changes(sample: Sample, name: str, changes: LogitChanges) -> None:
    with pytest.raises(KernelError, match=name):
        sample(logits(), make_batch(2, changes={1: changes}))


@implementations
def test_rows_of_changes(sample: Sample) -> None:
    for row in (-1, 2):
        with pytest.raises(KernelError, match="changes"):
            sample(logits(), make_batch(2, changes={row: LogitChanges()}))


@implementations
def test_logits(sample: Sample) -> None:
    for wrong in (
        logits().double(),
        logits().bfloat16(),
        logits()[0],
        logits()[None],
        torch.empty(2, 0),
        logits().requires_grad_(),
        logits(3),
    ):
        with pytest.raises(KernelError):
            sample(wrong, make_batch(2))
    with pytest.raises(KernelError, match="logits"):
        ALL["reference"](torch.empty(2, 0), make_batch(2))


@pytest.mark.parametrize("sample", CPU.values(), ids=CPU.keys())
def test_layout(sample: Sample) -> None:
    with pytest.raises(KernelError, match="logits"):
        sample(torch.randn(VOCAB_SIZE, 2).T, make_batch(2))
    with pytest.raises(KernelError, match="logits"):
        sample(torch.empty(2, VOCAB_SIZE, device="meta"), make_batch(2))
    column = torch.randn(2, 3)[:, :1]
    assert sample(column, make_batch(2)).token_ids == [0, 0]
    same = logits(1).expand(5, VOCAB_SIZE)
    assert len(set(sample(same, make_batch(5, temperatures=0.0)).token_ids)) == 1


@implementations
def test_no_rows(sample: Sample) -> None:
    sampled = sample(torch.empty(0, VOCAB_SIZE), make_batch(0))
    assert (sampled.token_ids, sampled.logprobs, sampled.ranks, sampled.top) == ([], [], [], {})


ANYTHING = st.one_of(
    st.none(), st.integers(), st.floats(), st.text(max_size=3), st.lists(st.integers(), max_size=3), st.booleans()
)
COLUMN = st.one_of(st.lists(ANYTHING, max_size=4), ANYTHING)
FIELDS = st.one_of(
    ANYTHING, st.builds(lambda fields: LogitChanges(*fields), st.lists(ANYTHING, min_size=9, max_size=9))
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_anything(data: st.DataObject) -> None:
    """A few columns hold anything at all: a result or a KernelError, never a crash."""
    batch = make_batch(2, changes={1: LogitChanges()})
    for name in data.draw(st.lists(st.sampled_from(list(SamplingBatch.__dataclass_fields__)), max_size=3)):
        if name == "changes":
            value: Any = data.draw(st.one_of(ANYTHING, st.dictionaries(st.integers(-1, 3), FIELDS, max_size=2)))
        else:
            value = data.draw(COLUMN)
        setattr(batch, name, value)
    for sample in ALL.values():
        try:
            sampled = sample(logits(), batch)
        except KernelError:
            continue
        assert all(-1 <= token < VOCAB_SIZE for token in sampled.token_ids)
