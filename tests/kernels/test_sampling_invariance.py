"""A row's result depends on the row alone, bit for bit: not on its company, the threads or the memory around it."""

from __future__ import annotations

import functools
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from paged_backend.kernels.cpu import _cpu
from paged_backend.kernels.cpu.sampling import sample as sample_cpu
from paged_backend.kernels.sampling_batch import LogitChanges, SampledBatch, SamplingBatch
from tests.kernels.sampling_case import ALL, CPU, Sample, make_batch, row_of

VOCAB_SIZE = 5003


def random_batch(num_rows: int, seed: int) -> SamplingBatch:
    rng = random.Random(seed)

    def column(*values: Any) -> list[Any]:
        return [rng.choice(values) for _ in range(num_rows)]

    tokens = [rng.randrange(VOCAB_SIZE) for _ in range(60)]
    changes = {
        row: LogitChanges(
            rng.choice((None, None, list(range(0, VOCAB_SIZE, 7)))),
            rng.choice(((), (1, 2))),
            rng.choice(({}, {5: 2.5, 77: -100.0})),
            rng.choice((1.0, 1.3)),
            rng.choice((0.0, 0.7)),
            rng.choice((0.0, -0.3)),
            tokens[: rng.randrange(30)],
            tokens[rng.randrange(30) :],
            rng.choice((-1, -1, 0, 1)),
        )
        for row in range(0, num_rows, 3)
    }
    return SamplingBatch(
        seeds=[tuple(rng.randrange(2**40) for _ in range(rng.choice((1, 1, 1, 3)))) for _ in range(num_rows)],
        temperatures=column(0.0, 0.3, 1.0, 1.7),
        positions=[rng.randrange(4000) for _ in range(num_rows)],
        top_k=column(0, 0, 1, 7, 300, 3000),
        top_p=column(1.0, 1.0, 0.5, 0.95, 0.9999),
        min_p=column(0.0, 0.0, 0.05),
        num_logprobs=column(-1, -1, 0, 3, 5),
        changes=changes,
        token_masks=torch.tensor([[rng.getrandbits(31) for _ in range(VOCAB_SIZE // 32 + 1)] for _ in range(2)]).int(),
    )


def rows_of(batch: SamplingBatch, sampled: SampledBatch) -> list[Any]:
    """What each row got, with NaN as something that equals itself."""
    results, begin = [], 0
    for row, seeds in enumerate(batch.seeds):
        end = begin + len(seeds)
        logprobs = torch.tensor(sampled.logprobs[begin:end]).view(torch.int32).tolist()
        results.append((sampled.token_ids[begin:end], logprobs, sampled.ranks[begin:end], sampled.top.get(row)))
        begin = end
    return results


@pytest.mark.parametrize("sample", ALL.values(), ids=ALL.keys())
@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_a_row_does_not_depend_on_the_others(sample: Sample, scale: float) -> None:
    num_rows = 67
    logits = torch.randn(num_rows, VOCAB_SIZE) * scale
    batch = random_batch(num_rows, 11)
    alone = [
        rows_of(one, sample(logits[row : row + 1], one))[0]
        for row, one in ((row, row_of(batch, row)) for row in range(num_rows))
    ]
    assert rows_of(batch, sample(logits, batch)) == alone
    rng = random.Random(5)
    for size in (2, 3, 33):
        rows = rng.sample(range(num_rows), size)
        picked = [row_of(batch, row) for row in rows]
        names = ("seeds", "temperatures", "positions", "top_k", "top_p", "min_p", "num_logprobs")
        together = SamplingBatch(
            changes={i: one.changes[0] for i, one in enumerate(picked) if one.changes},
            token_masks=batch.token_masks,
            **{name: [getattr(one, name)[0] for one in picked] for name in names},
        )
        assert rows_of(together, sample(logits[rows], together)) == [alone[row] for row in rows]


@pytest.mark.parametrize("instruction_set", CPU)
def test_threads_and_strides(instruction_set: str) -> None:
    logits = torch.randn(40, VOCAB_SIZE)
    batch = random_batch(40, 12)
    expected = rows_of(batch, sample_cpu(_cpu.Runtime(1, instruction_set), logits, batch))
    for num_threads in (2, 3, 7):
        operation: Sample = functools.partial(sample_cpu, _cpu.Runtime(num_threads, instruction_set))
        for _ in range(3):
            assert rows_of(batch, operation(logits, batch)) == expected
    wide = torch.full((40, VOCAB_SIZE + 9), torch.nan)
    for begin in range(1, 9, 3):  # no alignment is asked for, and what is beside a row is not looked at
        view: Tensor = wide[:, begin : begin + VOCAB_SIZE]
        view.copy_(logits)
        assert rows_of(batch, operation(view, batch)) == expected
        wide.fill_(torch.nan)


@pytest.mark.skipif(not {"avx2", "avx512"} <= CPU.keys(), reason="this processor has one of them at most")
def test_vectors_of_eight_and_sixteen_give_the_same_bits() -> None:
    """Blocks and columns are the same for both, and so is each rounding."""
    logits = torch.randn(40, VOCAB_SIZE)
    batch = random_batch(40, 13)
    assert rows_of(batch, CPU["avx2"](logits, batch)) == rows_of(batch, CPU["avx512"](logits, batch))


def test_memory_of_earlier_calls_does_not_matter() -> None:
    """One runtime, vocabularies that grow and shrink, rows with and without everything."""
    sample = CPU[next(iter(CPU))]
    big, small = torch.randn(3, VOCAB_SIZE), torch.randn(3, 40)
    batch = random_batch(3, 14)
    simple = make_batch(3, top_p=0.8, num_logprobs=3)
    first = rows_of(batch, sample(big, batch)), rows_of(simple, sample(small, simple))
    for _ in range(3):
        assert (rows_of(batch, sample(big, batch)), rows_of(simple, sample(small, simple))) == first
