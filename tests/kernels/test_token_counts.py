"""Penalties by counts that stay where logits are: those of lists, to the bit, draw after draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.sampling_batch import LogitChanges, SamplingBatch
from paged_backend.kernels.token_counts import IN_PROMPT, TokenCounts
from tests.kernels.sampling_case import DEVICE, EVERY, Sample, make_batch

implementations = pytest.mark.parametrize(("name", "sample"), EVERY.items(), ids=EVERY.keys())
VOCAB_SIZE = 600
PENALTIES = [(1.3, 0.25, 0.5), (1.0, -0.1, 0.0), (0.7, 0.0, 1.9)]
PROMPTS = [[5, 5, 70, 599], [], [0, 1, 2]]


def place_of(name: str) -> torch.device:
    return DEVICE if name == "triton" else torch.device("cpu")


def flat(row: int, tokens: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([row * VOCAB_SIZE + token for token in tokens], dtype=torch.int64, device=device)


def make_counts(rows: Sequence[int], device: torch.device) -> TokenCounts:
    """Those of the texts, in rows that have held others."""
    counts = TokenCounts.make(5, VOCAB_SIZE, device)
    counts.counts.fill_(7)
    counts.begin(torch.tensor(rows, device=device), torch.tensor(PENALTIES, device=device))
    for row, prompt in zip(rows, PROMPTS, strict=True):
        counts.add(flat(row, prompt, device), flat(row, [9, 9, 70], device))
    return counts


@implementations
def test_the_same_as_lists(name: str, sample: Sample) -> None:
    """Among other rows, with other changes beside them, for some steps."""
    device = place_of(name)
    rows = [3, 0, 4]
    counts = make_counts(rows, device)
    logits = torch.randn(5, VOCAB_SIZE, generator=torch.Generator().manual_seed(1)) * 2
    logits[1, 8:11] = 9.0
    texts = [[9, 9, 70] for _ in rows]
    others: dict[int, dict[str, Any]] = {2: {"logit_bias": {5: 2.0}}, 4: {"allowed_token_ids": [0, 1, 9, 70, 80]}}
    plain = {0: LogitChanges(logit_bias={3: 5.0})}
    for position in range(7, 10):
        columns: dict[str, Any] = {
            "seeds": [(row,) for row in range(5)],
            "temperatures": [1.0, 0.0, 0.9, 0.0, 1.3],
            "positions": position,
            "top_k": [0, 0, 40, 0, 0],
            "num_logprobs": [-1, 1, 0, -1, 2],
        }
        listed = {
            row: LogitChanges(
                repetition_penalty=penalties[0],
                frequency_penalty=penalties[1],
                presence_penalty=penalties[2],
                prompt_token_ids=prompt,
                output_token_ids=text,
                **others.get(row, {}),
            )
            for row, penalties, prompt, text in zip((1, 2, 4), PENALTIES, PROMPTS, texts, strict=True)
        }
        expected = sample(logits, make_batch(5, changes=plain | listed, **columns))
        batch = make_batch(
            5, changes=plain | {row: LogitChanges(**changes) for row, changes in others.items()}, **columns
        )
        batch.counted, batch.token_counts = [-1, 3, 0, -1, 4], counts
        assert repr(sample(logits, batch)) == repr(expected)
        for row, text in zip((1, 2, 4), texts, strict=True):
            text.append(expected.token_ids[row])
    for row, prompt, text in zip(rows, PROMPTS, texts, strict=True):
        wanted = torch.bincount(torch.tensor(text), minlength=VOCAB_SIZE).int()
        wanted[prompt] += IN_PROMPT
        assert torch.equal(counts.counts[row].cpu(), wanted)
    assert bool((counts.counts[1:3] == 7).all())


@implementations
def test_what_cannot_be_drawn_is_not_counted(name: str, sample: Sample) -> None:
    counts = make_counts([0, 1, 2], place_of(name))
    before = counts.counts.clone()
    logits = torch.zeros(2, VOCAB_SIZE)
    logits[1, 3] = torch.nan
    batch = SamplingBatch(seeds=[(1,), (2,)], temperatures=[0.0, 0.0], counted=[-1, 2], token_counts=counts)
    assert sample(logits, batch).token_ids == [0, -1]
    assert torch.equal(counts.counts, before)


@implementations
@pytest.mark.parametrize(
    ("word", "columns"),
    [
        ("counted", {"counted": [0]}),
        ("counted", {"counted": [0, 5]}),
        ("counted", {"counted": [0, -2]}),
        ("counted", {"counted": [2, 2]}),
        ("counted", {"counted": [0.5, 1]}),
        ("counted", {"counted": [0, 2**70]}),
        ("counted", {"counted": "01"}),
        ("counted", {"counted": [-1, 0], "seeds": [(1,), (1, 2)]}),
        ("counted", {"counted": [-1, 0], "num_best": [0, 2], "seeds": [(1,), ()]}),
        ("counted", {"counted": [-1, 0], "given": [(), (3,)]}),
        ("seeds", {"counted": [-1, 0], "seeds": [(1,), 5]}),
        ("token_counts", {"counted": [0, 1], "token_counts": None}),
        ("counts", {"counted": [0, 1], "token_counts": TokenCounts.make(5, VOCAB_SIZE - 1, DEVICE)}),
        ("penalties", {"counted": [0, -1], "changes": {0: LogitChanges(presence_penalty=1.0)}}),
    ],
)
def test_wrong_counts(name: str, sample: Sample, word: str, columns: dict[str, Any]) -> None:
    given = {"token_counts": make_counts([0, 1, 2], place_of(name))} | columns
    batch = make_batch(2, **{column: value for column, value in given.items() if column in ("seeds", "changes")})
    for column in given.keys() - {"seeds", "changes"}:
        setattr(batch, column, given[column])
    with pytest.raises(KernelError, match=word):
        sample(torch.zeros(2, VOCAB_SIZE), batch)


@pytest.mark.parametrize(
    ("word", "counts", "penalties"),
    [
        ("counts", torch.zeros(2, 4), torch.zeros(2, 3)),
        ("counts", torch.zeros(4, 2, dtype=torch.int32).T, torch.zeros(2, 3)),
        ("counts", None, torch.zeros(2, 3)),
        ("penalties", torch.zeros(2, 4, dtype=torch.int32), torch.zeros(3, 3)),
        ("penalties", torch.zeros(2, 4, dtype=torch.int32), torch.zeros(2, 3).double()),
    ],
)
def test_what_are_no_counts(word: str, counts: Any, penalties: Any) -> None:
    with pytest.raises(KernelError, match=word):
        TokenCounts(counts, penalties)
