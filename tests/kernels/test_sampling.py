"""Sampling, the reference and C++ on each instruction set, against float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paged_backend.kernels.sampling_batch import LogitChanges, SamplingBatch
from tests.kernels.sampling_case import ALL, CPU, Sample, check_draws, kept_weights, make_batch

implementations = pytest.mark.parametrize("sample", ALL.values(), ids=ALL.keys())
on_cpu = pytest.mark.parametrize("sample", CPU.values(), ids=CPU.keys())

VOCAB_SIZES = [1, 2, 15, 16, 17, 255, 256, 257, 1003, 4096, 4097, 20011]
SEEDS = tuple(range(100, 160))
FILTERS: list[dict[str, Any]] = [
    {},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 190},
    {"top_k": 3000},
    {"top_k": 10**9},
    {"top_k": -1},
    {"top_p": 1e-300},
    {"top_p": 0.3},
    {"top_p": 0.95},
    {"top_p": 0.999999},
    {"top_p": 1.0 - 2.0**-53},
    {"min_p": 1e-300},
    {"min_p": 0.02},
    {"min_p": 1.0},
    {"top_k": 700, "top_p": 0.9},
    {"min_p": 0.001, "top_k": 300, "top_p": 0.7},
]


def random_logits(num_rows: int, vocab_size: int, scale: float = 1.0) -> Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(vocab_size)) * scale


@implementations
@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_greedy_takes_the_first_of_the_largest(sample: Sample, vocab_size: int) -> None:
    logits = random_logits(9, vocab_size)
    logits[3:6] = (logits[3:6] * 2).round()  # equals
    logits[6] = -0.0
    logits[6, vocab_size // 2] = 0.0
    logits[7] = -torch.inf
    logits[7, vocab_size - 1] = -3e38
    logits[8, 0] = 3.4e38
    sampled = sample(logits, SamplingBatch(seeds=[(1,)] * 8 + [(2, 3)], temperatures=[0.0] * 9))
    first = [int((row == row.max()).nonzero()[0]) for row in logits]
    assert sampled.token_ids == [*first, first[8]]
    assert not sampled.logprobs and not sampled.ranks and not sampled.top


@on_cpu
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_draws(sample: Sample, filters: dict[str, Any]) -> None:
    for vocab_size in VOCAB_SIZES:
        for scale, temperature in ((0.2, 1.0), (3.0, 1.0), (3.0, 0.1), (1.0, 50.0)):
            logits = random_logits(2, vocab_size, scale)
            batch = make_batch(2, seeds=SEEDS, temperatures=temperature, **filters)
            check_draws(logits, batch, sample(logits, batch))


@on_cpu
@pytest.mark.parametrize("filters", [each for each in FILTERS if each != {"min_p": 1.0}], ids=str)
def test_spreads_that_no_float_divides(sample: Sample, filters: dict[str, Any]) -> None:
    """Logits too near to each other, or too far apart, for buckets; and hardly a token that is not ruled out.

    Not with min_p = 1: whether exp(-1e-40) is below 1, float64 cannot tell.
    """
    for vocab_size in (1000, 4096, 20011):
        logits = torch.zeros(3, vocab_size)
        logits[0, 5] = 1e-40
        logits[1] = random_logits(1, vocab_size, 1e38)[0]
        logits[1, :2] = torch.tensor([3e38, -3e38])
        logits[2] = -torch.inf
        logits[2, vocab_size // 2 : vocab_size // 2 + 40] = random_logits(1, 40)[0]
        for temperature in (1.0, 1e30):
            batch = make_batch(3, seeds=SEEDS, temperatures=temperature, **filters)
            check_draws(logits, batch, sample(logits, batch))


@on_cpu
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_equals(sample: Sample, filters: dict[str, Any]) -> None:
    """Few values, many equals of each, and tokens that the model rules out."""
    for vocab_size in VOCAB_SIZES:
        logits = (random_logits(4, vocab_size, 2.0) * 2).round() / 2
        logits[1] = 5.0
        logits[2, : vocab_size // 2] = -torch.inf
        logits[3] = 1.0
        logits[3, vocab_size // 3 :] = math.nextafter(1.0, 2.0)  # not a float32: still equals
        batch = make_batch(4, seeds=SEEDS, **filters)
        check_draws(logits, batch, sample(logits, batch))


@implementations
@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-30, 1e-6, 1e-3, 1e3, 1e300])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30, 3e38])
def test_extremes(sample: Sample, temperature: float, size: float) -> None:
    logits = random_logits(3, 600).clamp_(-1, 1) * size
    logits[1, 5:40] = -torch.inf
    for filters in FILTERS:
        batch = make_batch(3, seeds=SEEDS[:5], temperatures=temperature, **filters)
        sampled = sample(logits, batch)
        for row in range(3):
            weights = kept_weights(logits[row], temperature, 0, 1.0, 0.0)
            drawn = sampled.token_ids[5 * row : 5 * row + 5]
            assert all(weights[token] > 0.0 for token in drawn)
            if temperature * 1e3 < size * 1e-3:
                assert set(drawn) <= set((logits[row] == logits[row].max()).nonzero()[:, 0].tolist())


def test_a_nucleus_of_most_of_a_large_vocabulary() -> None:
    """Buckets within buckets: a flat distribution, and one with most of its tokens in one bucket."""
    vocab_size = 151936
    flat = random_logits(1, vocab_size, 0.5)[0]
    crowded = flat * 1e-4
    crowded[::1000] += 20.0
    logits = torch.stack((flat, crowded, crowded.round(decimals=5)))
    for top_p in (0.5, 0.9, 0.9995):
        batch = make_batch(3, seeds=SEEDS[:20], top_p=top_p)
        for sample in CPU.values():
            check_draws(logits, batch, sample(logits, batch))


@implementations
@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_logprobs_and_ranks(sample: Sample, vocab_size: int) -> None:
    logits = random_logits(5, vocab_size, 4.0)
    logits[3] = logits[3].round()
    logits[4, 1:] = -torch.inf
    counts = [-1, 0, 3, 40, vocab_size]
    sampled = sample(logits, make_batch(5, seeds=[(1, 2)] * 5, num_logprobs=counts, temperatures=3.0))
    exact = torch.log_softmax(logits.double(), dim=-1)
    assert list(sampled.top) == [1, 2, 3, 4]
    assert all(map(math.isnan, sampled.logprobs[:2]))
    assert sampled.ranks[:2] == [0, 0]
    for row in range(1, 5):
        for i in (2 * row, 2 * row + 1):
            token = sampled.token_ids[i]
            # float32 of the result, and the sum of the weights within 2e-7.
            assert sampled.logprobs[i] == pytest.approx(exact[row, token].item(), rel=1e-7, abs=2e-7)
            assert sampled.ranks[i] == 1 + int((logits[row] > logits[row, token]).sum())
        order = logits[row].sort(descending=True, stable=True).indices[: counts[row]]
        assert [token for token, _ in sampled.top[row]] == order.tolist()
        values = [value for _, value in sampled.top[row]]
        assert values == pytest.approx(exact[row, order].tolist(), rel=1e-7, abs=2e-7)


@implementations
def test_logprobs_are_of_what_came(sample: Sample) -> None:
    logits = random_logits(1, 300)
    exact = torch.log_softmax(logits[0].double(), dim=-1)
    changes = {0: LogitChanges(allowed_token_ids=[7, 9], logit_bias={9: 90.0})}
    before = logits.clone()
    sampled = sample(logits, make_batch(1, num_logprobs=2, temperatures=0.0, changes=changes))
    assert torch.equal(logits, before)
    assert sampled.token_ids == [9]
    assert sampled.logprobs[0] == pytest.approx(exact[9].item(), rel=1e-6)
    assert [token for token, _ in sampled.top[0]] == exact.topk(2).indices.tolist()


PROMPT = (1, 2, 2, 3)
OUTPUT = (3, 4, 4, 4, 5)
CHANGES = [
    LogitChanges(repetition_penalty=1.7, prompt_token_ids=PROMPT, output_token_ids=OUTPUT),
    LogitChanges(repetition_penalty=0.6, prompt_token_ids=PROMPT),
    LogitChanges(presence_penalty=1.5, output_token_ids=OUTPUT, prompt_token_ids=PROMPT),
    LogitChanges(frequency_penalty=0.5, output_token_ids=OUTPUT),
    LogitChanges(presence_penalty=-0.5, frequency_penalty=-1.0, output_token_ids=OUTPUT),
    LogitChanges(logit_bias={0: 5.0, 4: -3.5}),
    LogitChanges(None, (), {4: 2.0}, 2.0, 0.1, 0.7, PROMPT, OUTPUT),
    LogitChanges(allowed_token_ids=[2, 4, 40]),
    LogitChanges(suppressed_token_ids=(0, 49)),
    LogitChanges([2, 4, 4, 40], (4,), {4: 100.0}, frequency_penalty=1.0, output_token_ids=OUTPUT),
    LogitChanges(presence_penalty=1.0, repetition_penalty=1.2, prompt_token_ids=PROMPT),
]


def changed_by_hand(logits: list[float], changes: LogitChanges) -> list[float]:
    result = []
    for token, value in enumerate(logits):
        if changes.allowed_token_ids is not None and token not in changes.allowed_token_ids:
            value = -math.inf
        if token in changes.suppressed_token_ids:
            value = -math.inf
        value += changes.logit_bias.get(token, 0.0)
        if token in changes.prompt_token_ids or token in changes.output_token_ids:
            value = value / changes.repetition_penalty if value > 0 else value * changes.repetition_penalty
        count = changes.output_token_ids.count(token)
        value -= changes.frequency_penalty * count + changes.presence_penalty * (count > 0)
        result.append(value)
    return result


@implementations
@pytest.mark.parametrize("changes", CHANGES)
def test_changes(sample: Sample, changes: LogitChanges) -> None:
    """Seen through draws at many points: a wrong logit moves the borders between them."""
    seeds = tuple(range(3000))
    logits = random_logits(2, 50)
    by_hand = torch.tensor(changed_by_hand(logits[1].tolist(), changes), dtype=torch.float32)[None]
    drawn = sample(logits, make_batch(2, seeds=seeds, changes={1: changes})).token_ids
    expected = sample(torch.cat((logits[:1], by_hand)), make_batch(2, seeds=seeds)).token_ids
    assert sum(a != b for a, b in zip(drawn, expected, strict=True)) <= 2  # each rounding may move a border by 1e-7
    greedy = sample(logits, make_batch(2, temperatures=0.0, changes={1: changes})).token_ids
    assert greedy == [int(logits[0].argmax()), int(by_hand.argmax())]


@implementations
def test_rows_without_numbers(sample: Sample) -> None:
    negative_nan = torch.tensor([-4194304], dtype=torch.int32).view(torch.float32)
    assert torch.isnan(negative_nan)
    for vocab_size in (1, 300, 5000):
        for bad in (torch.nan, negative_nan, torch.inf):
            logits = random_logits(4, vocab_size)
            logits[1, vocab_size - 1] = bad
            logits[2] = -torch.inf
            for temperature in (0.0, 1.0):
                batch = make_batch(4, seeds=[(1,), (1, 2), (1,), (1,)], temperatures=temperature, num_logprobs=2)
                sampled = sample(logits, batch)
                assert sampled.token_ids[1:4] == [-1, -1, -1]
                assert min(sampled.token_ids[0], sampled.token_ids[4]) >= 0
                assert list(sampled.top) == [0, 3]
    logits = random_logits(2, 20)
    nothing_left = LogitChanges([4, 5], (4, 5))
    over_the_top = LogitChanges(logit_bias={3: 3.4e38}, repetition_penalty=0.001, prompt_token_ids=(3,))
    assert sample(logits, make_batch(2, changes={0: nothing_left, 1: over_the_top})).token_ids == [-1, -1]


@implementations
def test_seeds_are_signed_or_not(sample: Sample) -> None:
    logits = random_logits(1, 1000)
    drawn = sample(logits, make_batch(1, seeds=[(-1, 2**64 - 1, 7)])).token_ids
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 2


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, SamplingBatch]:
    num_rows = draw(st.integers(0, 4))
    vocab_size = draw(st.one_of(st.integers(1, 40), st.integers(200, 3000)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randn(num_rows, vocab_size + 5, generator=generator)[:, 2 : vocab_size + 2]
    logits = logits * draw(st.sampled_from((0.01, 1.0, 8.0)))
    if draw(st.booleans()):
        logits = logits.round(decimals=1)

    def column(values: st.SearchStrategy[Any]) -> list[Any]:
        return [draw(values) for _ in range(num_rows)]

    batch = SamplingBatch(
        seeds=column(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=9)),
        temperatures=column(st.one_of(st.just(0.0), st.floats(0.05, 20.0))),
        positions=column(st.integers(0, 2**40)),
        top_k=column(st.one_of(st.just(0), st.integers(-1, 2 * vocab_size))),
        top_p=column(st.one_of(st.just(1.0), st.floats(0.0, 1.0, exclude_min=True))),
        min_p=column(st.one_of(st.just(0.0), st.floats(0.0, 1.0))),
        num_logprobs=column(st.integers(-1, 50)),
    )
    return logits, batch


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_any_batch(case: tuple[Tensor, SamplingBatch]) -> None:
    logits, batch = case
    wanted = ALL["reference"](logits, batch)
    for sample in CPU.values():
        sampled = sample(logits, batch)
        check_draws(logits, batch, sampled)
        assert len(sampled.token_ids) == len(sampled.logprobs) == len(wanted.logprobs)
        assert sampled.top.keys() == wanted.top.keys()
        for row, top in sampled.top.items():
            assert [token for token, _ in top] == [token for token, _ in wanted.top[row]]
