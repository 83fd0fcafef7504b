"""The most likely tokens in place of draws, the reference and C++ on each instruction set, against torch in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.reference.sampling import change_logits
from paged_backend.kernels.sampling_batch import LogitChanges
from tests.kernels.sampling_case import ALL, CPU, EVERY, Sample, make_batch

implementations = pytest.mark.parametrize("sample", EVERY.values(), ids=EVERY.keys())
CHANGES = [
    None,
    LogitChanges(repetition_penalty=1.5, prompt_token_ids=[0, 3], output_token_ids=[1, 1]),
    LogitChanges(allowed_token_ids=[5, 2, 9], suppressed_token_ids=[9]),
    LogitChanges(logit_bias={4: 30.0, 2: -7.5}, presence_penalty=0.5, frequency_penalty=-1.0, output_token_ids=[4, 4]),
]


def random_logits(num_rows: int, vocab_size: int) -> Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(vocab_size)) * 4


def expected(logits: Tensor, changes: LogitChanges | None, count: int) -> tuple[list[int], list[float]]:
    logprobs = torch.log_softmax(logits.double(), dim=-1).float()
    if changes is not None:
        logprobs = change_logits(logprobs, changes)
    order = sorted(range(len(logprobs)), key=lambda token: (-float(logprobs[token]), token))[:count]
    tokens = [token for token in order if logprobs[token] > -math.inf]
    missing = count - len(tokens)
    return tokens + [-1] * missing, logprobs[tokens].tolist() + [-math.inf] * missing


@pytest.mark.parametrize("sample", ALL.values(), ids=ALL.keys())
@pytest.mark.parametrize("changes", CHANGES, ids=range(len(CHANGES)))
@pytest.mark.parametrize("vocab_size", [12, 257, 5003])
def test_best_beside_draws(sample: Sample, changes: LogitChanges | None, vocab_size: int) -> None:
    logits = random_logits(4, vocab_size)
    columns = {"temperatures": [1.0, 0.0, 0.0, 0.0], "num_best": [0, 8, 0, 12], "num_logprobs": [-1, 2, 0, -1]}
    seeds = [(1, 2), (), (3,), ()]
    by_row = {} if changes is None else {1: changes, 3: changes}
    found = sample(logits, make_batch(4, seeds=seeds, changes=by_row, **columns))
    plain = sample(logits[[0, 2]], make_batch(2, seeds=[(1, 2), (3,)], temperatures=[1.0, 0.0]))
    assert found.token_ids[:2] + found.token_ids[10:11] == plain.token_ids
    for start, row, count in ((2, 1, 8), (11, 3, 12)):
        tokens, scores = expected(logits[row], changes, count)
        assert found.token_ids[start : start + count] == tokens
        assert found.scores[start : start + count] == pytest.approx(scores, abs=2e-6, rel=1e-6)
    raw = torch.log_softmax(logits[1].double(), dim=-1)
    for place, token in enumerate(found.token_ids[2:10], start=2):
        if token < 0:
            assert math.isnan(found.logprobs[place]) and found.ranks[place] == 0
        else:
            assert found.logprobs[place] == pytest.approx(float(raw[token]), abs=2e-6)
            assert found.ranks[place] == 1 + int((raw > raw[token]).sum())
    assert [token for token, _ in found.top[1]] == raw.topk(2).indices.tolist()
    assert len(found.token_ids) == len(found.scores) == len(found.logprobs) == 23


@implementations
def test_equals_come_in_the_order_of_ids(sample: Sample) -> None:
    logits = torch.zeros(1, 600)
    logits[0, [7, 300, 301]] = 1.0
    found = sample(logits, make_batch(1, seeds=[()], temperatures=0.0, num_best=6))
    assert found.token_ids == [7, 300, 301, 0, 1, 2]


@implementations
def test_what_leaves_nothing(sample: Sample) -> None:
    logits = random_logits(4, 300)
    logits[0, 5] = math.nan
    logits[1] = -math.inf
    logits[3, 2:] = -math.inf
    changes = {2: LogitChanges(allowed_token_ids=[4], suppressed_token_ids=[4])}
    found = sample(logits, make_batch(4, seeds=[()] * 4, temperatures=0.0, num_best=3, changes=changes))
    assert found.token_ids[:9] == [-1] * 9 and found.scores[:9] == [-math.inf] * 9
    assert sorted(found.token_ids[9:11]) == [0, 1] and found.token_ids[11] == -1


@pytest.mark.parametrize("sample", CPU.values(), ids=CPU.keys())
def test_a_row_depends_on_nothing_beside_it(sample: Sample) -> None:
    logits = random_logits(40, 5003)
    changes = {row: CHANGES[row % 4] for row in range(40) if row % 4}
    columns = {"seeds": [()] * 40, "temperatures": 0.0, "num_best": 9}
    together = sample(logits, make_batch(40, changes=changes, **columns))
    for row in (0, 1, 2, 3, 39):
        own = {0: changes[row]} if row in changes else {}
        alone = sample(logits[row : row + 1], make_batch(1, seeds=[()], temperatures=0.0, num_best=9, changes=own))
        assert alone.token_ids == together.token_ids[9 * row : 9 * row + 9]
        assert alone.scores == together.scores[9 * row : 9 * row + 9]


@implementations
@pytest.mark.parametrize("wrong", [[4, -1], [4], [4, 301], [4, 2**70], [4, 1.5], ["a", 1], None])
def test_wrong_counts_are_named(sample: Sample, wrong: object) -> None:
    batch = make_batch(2)
    batch.num_best = wrong  # type: ignore[assignment]
    with pytest.raises(KernelError, match="num_best"):
        sample(random_logits(2, 300), batch)
