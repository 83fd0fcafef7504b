"""Draws: the right distribution, the right tokens, and every row as if it were alone.

`kernels` is the reference, then C++ (conftest.py); tests/kernels/test_sampling.py looks at each draw by itself.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from paged_backend.kernels.interface import Kernels
from paged_backend.sampling import sampler
from paged_backend.sampling.sampler import build_batch
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import NOT_DRAWN, SampledToken, SamplingTask

VOCAB_SIZE = 1003


def task(
    *,
    seeds: tuple[int, ...] = (1,),
    position: int = 10,
    prompt: tuple[int, ...] = (3, 4),
    output: tuple[int, ...] = (),
    suppressed: tuple[int, ...] = (),
    **params: Any,
) -> SamplingTask:
    prompt = (*prompt, *prompt[-1:] * (position - len(prompt) - len(output)))
    return SamplingTask(SamplingParams(**params), seeds, prompt, (*prompt, *output), suppressed)


def sample(kernels: Kernels, logits: Tensor, tasks: Sequence[SamplingTask]) -> list[tuple[SampledToken, ...]]:
    """The drawn tokens of each task; none where nothing could be drawn."""
    result = sampler.sample(kernels, logits, tasks)
    places = iter(enumerate(result.token_ids))
    rows = [[next(places) for _ in one.seeds] for one in tasks]
    assert next(places, None) is None
    for row in rows:
        assert len({token_id == NOT_DRAWN for _, token_id in row}) == 1
    return [
        tuple(result.described.get(place, SampledToken(token_id)) for place, token_id in row if token_id != NOT_DRAWN)
        for row in rows
    ]


def random_logits(num_rows: int, seed: int = 0, vocab_size: int = VOCAB_SIZE) -> Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 3


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    """Pearson's statistic, standardised: 0 with a deviation of about 1 if draws follow the distribution."""
    expected = probabilities * counts.sum()
    kept = expected > 5
    statistic = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    freedom = int(kept.sum()) - 1
    return float((statistic - freedom) / (2 * freedom) ** 0.5)


def draw_many(kernels: Kernels, logits: Tensor, num_draws: int, **params: Any) -> Tensor:
    """Counts of each token over draws that differ in their seed alone."""
    seeds = tuple(range(1000, 1000 + num_draws))
    (drawn,) = sample(kernels, logits[None].clone(), [task(seeds=seeds, **params)])
    return torch.bincount(torch.tensor([t.token_id for t in drawn]), minlength=len(logits)).double()


def test_draws_follow_the_distribution(kernels: Kernels) -> None:
    logits = random_logits(1, seed=3, vocab_size=60)[0]
    counts = draw_many(kernels, logits, 20000)
    assert abs(chi_square(counts, torch.softmax(logits.double(), -1))) < 4
    counts = draw_many(kernels, logits, 20000, temperature=2.5)
    assert abs(chi_square(counts, torch.softmax(logits.double() / 2.5, -1))) < 4
    assert chi_square(counts, torch.softmax(logits.double(), -1)) > 100, "the test itself must see a difference"


def test_draws_over_positions_follow_the_distribution(kernels: Kernels) -> None:
    logits = random_logits(1, seed=4, vocab_size=40)
    tokens = [sample(kernels, logits, [task(position=position)])[0][0].token_id for position in range(5000)]
    counts = torch.bincount(torch.tensor(tokens), minlength=40).double()
    assert abs(chi_square(counts, torch.softmax(logits[0].double(), -1))) < 4


def filtered(logits: Tensor, *, min_p: float = 0.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """The kept tokens' probabilities, spelled out: min_p, then top_k, then top_p of what is left."""
    probabilities = torch.softmax(logits.double(), -1)
    probabilities[probabilities < min_p * probabilities.max()] = 0
    if top_k:
        probabilities[probabilities < probabilities.sort(descending=True).values[:top_k][-1]] = 0
    probabilities /= probabilities.sum()
    kept, total = torch.zeros_like(probabilities), 0.0
    for token in probabilities.argsort(descending=True).tolist():
        if total >= top_p:
            break
        kept[token] = probabilities[token]
        total += float(probabilities[token])
    return kept / kept.sum()


@pytest.mark.parametrize(
    "params",
    [
        {"top_k": 5},
        {"top_k": 1},
        {"top_k": 2000},
        {"top_p": 0.3},
        {"top_p": 0.9},
        {"top_p": 0.999999},
        {"min_p": 0.1},
        {"min_p": 1.0},
        {"top_k": 20, "top_p": 0.8},
        {"min_p": 0.02, "top_k": 30, "top_p": 0.7},
    ],
)
def test_filters(kernels: Kernels, params: dict[str, Any]) -> None:
    logits = random_logits(1, seed=8)[0] / 2
    expected = filtered(logits, **params)
    counts = draw_many(kernels, logits, 6000, **params)
    assert not counts[expected == 0].any(), "a dropped token was drawn"
    if int((expected > 0).sum()) > 1:
        assert abs(chi_square(counts, expected)) < 4


def test_counts_beyond_the_vocabulary_and_64_bits(kernels: Kernels) -> None:
    logits = random_logits(1, vocab_size=50)
    tasks = [task(top_k=2**63, logprobs=2**63), task(logprobs=50)]
    drawn, expected = sample(kernels, logits.expand(2, -1).contiguous(), tasks)
    assert drawn == expected and len(drawn[0].top) == 50


def test_a_row_that_is_refused_spares_its_neighbours(kernels: Kernels) -> None:
    logits = random_logits(3)
    neighbours = [task(seeds=(1, 2), logprobs=2), task(logprobs=1)]
    expected = sample(kernels, logits[[0, 2]], neighbours)
    drawn = sample(kernels, logits, [neighbours[0], task(suppressed=(VOCAB_SIZE,)), neighbours[1]])
    assert drawn == [expected[0], (), expected[1]]


def test_nucleus_larger_than_the_first_candidates(kernels: Kernels) -> None:
    """A flat distribution: the nucleus holds most of the vocabulary."""
    logits = torch.linspace(0, 0.5, VOCAB_SIZE)
    counts = draw_many(kernels, logits, 8000, top_p=0.95)
    expected = filtered(logits, top_p=0.95)
    assert not counts[expected == 0].any()
    assert abs(chi_square(counts, expected)) < 4
    counts = draw_many(kernels, logits, 8000, top_p=0.95, top_k=700)
    assert not counts[filtered(logits, top_p=0.95, top_k=700) == 0].any()


def test_equals_at_the_edge_stay_together(kernels: Kernels) -> None:
    logits = torch.zeros(50)
    logits[10:20] = 4.0
    for params in ({"top_k": 3}, {"top_p": 0.2}, {"min_p": 0.9}):
        counts = draw_many(kernels, logits, 3000, **params)
        assert set(counts.nonzero()[:, 0].tolist()) == set(range(10, 20))


@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 1e-3])
def test_tiny_temperatures_are_nearly_greedy(kernels: Kernels, temperature: float) -> None:
    logits = random_logits(4, seed=9)
    drawn = sample(kernels, logits.clone(), [task(temperature=temperature) for _ in range(4)])
    assert [tokens[0].token_id for tokens in drawn] == logits.argmax(dim=-1).tolist()


def test_huge_temperature_is_uniform(kernels: Kernels) -> None:
    counts = draw_many(kernels, random_logits(1, vocab_size=50)[0], 5000, temperature=1000.0)
    assert abs(chi_square(counts, torch.full((50,), 0.02, dtype=torch.float64))) < 4


def random_task(rng: random.Random) -> SamplingTask:
    length = rng.randrange(30)
    return task(
        seeds=tuple(rng.randrange(2**40) for _ in range(rng.choice((1, 1, 1, 3)))),
        position=rng.randrange(1, 4000),
        prompt=tuple(rng.randrange(VOCAB_SIZE) for _ in range(20)),
        output=tuple(rng.randrange(VOCAB_SIZE) for _ in range(length)),
        suppressed=rng.choice(((), (1, 2))),
        temperature=rng.choice((0.0, 0.3, 1.0, 1.7)),
        top_k=rng.choice((0, 0, 1, 7, 300)),
        top_p=rng.choice((1.0, 1.0, 0.5, 0.95, 0.9999)),
        min_p=rng.choice((0.0, 0.0, 0.05)),
        repetition_penalty=rng.choice((1.0, 1.0, 1.3)),
        presence_penalty=rng.choice((0.0, 0.0, 0.7)),
        frequency_penalty=rng.choice((0.0, 0.0, -0.3)),
        logit_bias=rng.choice(({}, {5: 2.5, 77: -100.0})),
        allowed_token_ids=rng.choice((None, None, list(range(0, VOCAB_SIZE, 7)))),
        logprobs=rng.choice((None, 0, 3, 5)),
    )


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_a_row_does_not_depend_on_the_others(kernels: Kernels, scale: float) -> None:
    """Bit for bit: tokens, logprobs, ranks and candidates, alone, in any company and in any order."""
    rng = random.Random(11)
    num_rows = 67
    logits = random_logits(num_rows, seed=12) * scale
    tasks = [random_task(rng) for _ in range(num_rows)]
    alone = [sample(kernels, logits[row : row + 1].clone(), [tasks[row]])[0] for row in range(num_rows)]
    assert sample(kernels, logits.clone(), tasks) == alone
    for size in (2, 3, 8, 33, 66):
        rows = rng.sample(range(num_rows), size)
        assert sample(kernels, logits[rows], [tasks[row] for row in rows]) == [alone[row] for row in rows]


def test_samples_of_one_row_draw_with_their_own_seeds(kernels: Kernels) -> None:
    logits = random_logits(1, seed=14)
    (together,) = sample(kernels, logits.clone(), [task(seeds=(5, 6, 7))])
    apart = [sample(kernels, logits.clone(), [task(seeds=(seed,))])[0][0] for seed in (5, 6, 7)]
    assert list(together) == apart
    assert len({t.token_id for t in apart}) > 1
    (greedy,) = sample(kernels, logits.clone(), [task(seeds=(5, 6), temperature=0.0)])
    assert [t.token_id for t in greedy] == [int(logits.argmax())] * 2


def test_greedy_rows(kernels: Kernels) -> None:
    logits = random_logits(5, seed=15)
    drawn = sample(kernels, logits.clone(), [task(temperature=0.0) for _ in range(5)])
    assert drawn == [(SampledToken(token),) for token in logits.argmax(dim=-1).tolist()]
    assert sample(kernels, torch.empty(0, VOCAB_SIZE), []) == []


def test_logprobs_are_of_the_raw_distribution(kernels: Kernels) -> None:
    logits = random_logits(2, seed=16)
    best = int(logits[0].argmax())
    raw = torch.log_softmax(logits[0].double(), -1)
    one, other = sample(
        kernels,
        logits.clone(),
        [task(temperature=0.0, logprobs=4, logit_bias={best: -100.0, 17: 100.0}, top_k=1), task()],
    )
    (drawn,) = one
    assert drawn.token_id == 17
    assert drawn.logprob == pytest.approx(float(raw[17]), abs=1e-5)
    assert drawn.rank == int((raw > raw[17]).sum()) + 1
    values, ids = raw.topk(4)
    assert [token for token, _ in drawn.top] == ids.tolist()
    assert [value for _, value in drawn.top] == pytest.approx(values.tolist(), abs=1e-5)
    assert other[0].logprob is None
    assert other[0].top == ()
    (zero,) = sample(kernels, logits[:1].clone(), [task(temperature=0.0, logprobs=0)])
    assert zero[0].top == ()
    assert zero[0].rank == 1
    (many,) = sample(kernels, logits[:1].clone(), [task(logprobs=5000, seeds=(1, 2))])
    assert len(many[0].top) == len(many[1].top) == VOCAB_SIZE


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_row_fails_alone(kernels: Kernels, bad: float, temperature: float) -> None:
    logits = random_logits(3, seed=17)
    expected = sample(kernels, logits.clone(), [task(temperature=temperature, logprobs=2) for _ in range(3)])
    logits[1, 500] = bad
    drawn = sample(kernels, logits.clone(), [task(temperature=temperature, logprobs=2) for _ in range(3)])
    assert drawn == [expected[0], (), expected[2]]


def test_a_row_with_nothing_to_draw_fails_alone(kernels: Kernels) -> None:
    logits = random_logits(2, seed=18)
    drawn = sample(kernels, logits, [task(allowed_token_ids=[4, 5], suppressed=(4, 5), logprobs=1), task()])
    assert drawn[0] == ()
    assert len(drawn[1]) == 1


def test_tokens_that_the_model_itself_rules_out(kernels: Kernels) -> None:
    logits = torch.full((1, 30), float("-inf"))
    logits[0, [3, 9]] = 1.0
    counts = draw_many(kernels, logits[0], 500)
    assert set(counts.nonzero()[:, 0].tolist()) == {3, 9}


def test_columns_of_greedy_rows_are_few() -> None:
    batch = build_batch([task(temperature=0.0), task(temperature=0.0, seeds=(1, 2))])
    assert batch.seeds == [(1,), (1, 2)]
    assert (batch.positions, batch.top_k, batch.num_logprobs, batch.changes) == ((), (), (), {})
    mixed = build_batch([task(temperature=0.0), task(top_k=3, logprobs=0), task(suppressed=(4,))])
    assert (mixed.top_k, mixed.num_logprobs, list(mixed.changes)) == ([0, 3, 0], [-1, 0, -1], [2])


def test_rows_with_several_seeds_beside_rows_that_fail(kernels: Kernels) -> None:
    logits = random_logits(4, seed=19)
    logits[1] = torch.nan
    tasks = [task(seeds=(1, 2)), task(seeds=(1, 2, 3), logprobs=1), task(seeds=(4,), logprobs=1), task(seeds=(1, 2))]
    drawn = sample(kernels, logits, tasks)
    assert [len(tokens) for tokens in drawn] == [2, 0, 1, 2]
    assert drawn[0] == sample(kernels, logits[:1], tasks[:1])[0]
    assert drawn[2] == sample(kernels, logits[2:3], tasks[2:3])[0]
    assert drawn[2][0].rank is not None
    assert drawn[3][0].rank is None
