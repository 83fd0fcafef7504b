"""Tokens that are given, to be described: the reference and C++ on each instruction set, against torch in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.sampling_batch import LogitChanges
from tests.kernels.sampling_case import CPU, EVERY, Sample, make_batch, row_of

implementations = pytest.mark.parametrize("sample", EVERY.values(), ids=EVERY.keys())


def random_logits(num_rows: int, vocab_size: int) -> Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(vocab_size)) * 4


@implementations
@pytest.mark.parametrize("vocab_size", [12, 257, 5003])
def test_given_tokens_beside_draws_and_best_ones(sample: Sample, vocab_size: int) -> None:
    logits = random_logits(4, vocab_size)
    logits[1, 3] = -torch.inf
    columns = {"temperatures": [1.0, 1.0, 0.0, 0.0], "num_logprobs": [-1, 2, 0, 10**9]}
    given, seeds = [(), (5, 3, 5, 11), (), (7,)], [(1, 2), (), (), (9,)]
    changes = {0: LogitChanges(allowed_token_ids=[4, 6]), 1: LogitChanges(allowed_token_ids=[0])}
    found = sample(logits, make_batch(4, seeds=seeds, num_best=[0, 0, 3, 0], given=given, changes=changes, **columns))
    plain = sample(logits[:1], make_batch(1, seeds=[(1, 2)], changes={0: changes[0]}))
    assert found.token_ids[:2] == plain.token_ids
    assert found.token_ids[2:6] == [5, 3, 5, 11] and found.token_ids[9:] == [7]
    assert len(found.token_ids) == len(found.logprobs) == len(found.ranks) == len(found.scores) == 10
    for row, places in ((1, range(2, 6)), (3, range(9, 10))):
        raw = torch.log_softmax(logits[row].double(), dim=-1)
        for place in places:
            token = found.token_ids[place]
            assert found.logprobs[place] == pytest.approx(float(raw[token]), abs=2e-6)
            assert found.ranks[place] == 1 + int((raw > raw[token]).sum())
    raw = torch.log_softmax(logits[3].double(), dim=-1)
    assert [token for token, _ in found.top[3]] == raw.sort(descending=True, stable=True).indices.tolist()
    assert [value for _, value in found.top[3]] == pytest.approx(raw.sort(descending=True).values.tolist(), abs=2e-6)
    assert len(found.top[1]) == 2 and found.top[2] == ()


@implementations
def test_logits_that_are_not_numbers(sample: Sample) -> None:
    logits = random_logits(3, 300)
    logits[0, 5] = math.nan
    logits[1] = -math.inf
    found = sample(logits, make_batch(3, seeds=[()] * 3, given=[(5, 6), (1,), (2,)], num_logprobs=[1, 1, 1]))
    assert found.token_ids == [-1, -1, -1, 2]
    assert all(math.isnan(value) for value in found.logprobs[:3]) and list(found.top) == [2]


@pytest.mark.parametrize("sample", CPU.values(), ids=CPU.keys())
def test_a_row_depends_on_nothing_beside_it(sample: Sample) -> None:
    logits = random_logits(30, 5003)
    given = [(row, 7 * row) if row % 3 else () for row in range(30)]
    batch = make_batch(30, given=given, num_logprobs=[3] * 30)
    together, start = sample(logits, batch), 0
    for row, tokens in enumerate(given):
        alone, end = sample(logits[row : row + 1], row_of(batch, row)), start + max(1, len(tokens))
        assert alone.token_ids == together.token_ids[start:end]
        assert alone.logprobs == together.logprobs[start:end] and alone.top[0] == together.top[row]
        start = end


@implementations
@pytest.mark.parametrize("wrong", [[(4,)], [(4,), (-1,)], [(4,), (300,)], [(4,), (1.5,)], [4, ()], ["a", ()], None])
def test_wrong_tokens_are_named(sample: Sample, wrong: object) -> None:
    batch = make_batch(2)
    batch.given = wrong  # type: ignore[assignment]
    with pytest.raises(KernelError, match="given"):
        sample(random_logits(2, 300), batch)


@implementations
def test_not_together_with_the_best(sample: Sample) -> None:
    with pytest.raises(KernelError, match="given"):
        sample(random_logits(1, 300), make_batch(1, given=[(4,)], num_best=[2]))
