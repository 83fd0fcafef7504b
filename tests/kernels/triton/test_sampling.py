"""Sampling in Triton against the reference: draws, filters, changes, descriptions, and nothing that waits.

The tests of `tests/kernels` on arguments, given tokens and most likely ones run on these kernels too.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from paged_backend.errors import KernelError
from paged_backend.kernels.reference.random_bits import uniform
from paged_backend.kernels.reference.sampling import change_logits
from paged_backend.kernels.reference.sampling import sample as sample_reference
from paged_backend.kernels.sampling_batch import LogitChanges, SampledBatch, SamplingBatch
from paged_backend.kernels.token_counts import TokenCounts
from paged_backend.kernels.triton.sampling.aot import aot_cases
from paged_backend.kernels.triton.sampling.arithmetic import LOG2_UNITS, random_word, share_of
from paged_backend.kernels.triton.sampling.blocks import blocks_kernel
from paged_backend.kernels.triton.sampling.launch import launch
from paged_backend.kernels.triton.sampling.likely import COUNTS
from paged_backend.kernels.triton.sampling.passes import MAX_VOCAB_SIZE, Passes, Scratch
from paged_backend.kernels.triton.sampling.resident import ResidentSampler, is_plain
from paged_backend.kernels.triton.sampling.tables import Filters, read_jobs
from paged_backend.kernels.triton.sampling.warm_up import warm_up
from tests.kernels.sampling_case import TRITON, check_draws, make_batch, row_of
from tests.kernels.test_token_masks import pack

sample = TRITON["triton"]
Kernel: Any = type(blocks_kernel)
"""Of a card, or of the interpreter."""
VOCAB_SIZE = 5003
"""Three blocks, the last of them in part."""

# Of numbers that are thrown away: Triton's interpreter computes both sides of a choice.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")


def random_logits(num_rows: int, vocab_size: int = VOCAB_SIZE, scale: float = 2.0) -> Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(vocab_size)) * scale


def check(logits: Tensor, batch: SamplingBatch) -> SampledBatch:
    """Draws that the reference allows, and its descriptions."""
    sampled, expected = sample(logits, batch), sample_reference(logits, batch)
    check_draws(logits, batch, sampled)
    assert [math.isnan(value) for value in sampled.logprobs] == [math.isnan(value) for value in expected.logprobs]
    if sampled.token_ids == expected.token_ids:
        assert sampled.logprobs == pytest.approx(expected.logprobs, abs=2e-6, nan_ok=True)
        assert sampled.ranks == expected.ranks
    assert sampled.top.keys() == expected.top.keys()
    for row, top in sampled.top.items():
        assert [token for token, _ in top] == [token for token, _ in expected.top[row]]
        assert [value for _, value in top] == pytest.approx([value for _, value in expected.top[row]], abs=2e-6)
    return sampled


@triton.jit
def words_kernel(seeds, positions, totals, words, shares):
    index = tl.program_id(0)
    word = random_word(tl.load(seeds + index), tl.load(positions + index))
    tl.store(words + index, word.to(tl.int64, bitcast=True))
    tl.store(shares + index, share_of(word, tl.load(totals + index)))


def test_random_numbers_are_the_references(device: torch.device) -> None:
    keys = [(seed, position) for seed in (-(2**63), -1, 0, 12345678901234567, 2**63 - 1) for position in (0, 7, 2**40)]
    total = 2**62 - 12345
    seeds, positions = (torch.tensor(column, device=device) for column in zip(*keys, strict=True))
    words, shares = torch.empty_like(seeds), torch.empty_like(seeds)
    words_kernel[(len(keys),)](seeds, positions, torch.full_like(seeds, total), words, shares)
    expected = [int(uniform(seed, position) * 2**53) for seed, position in keys]
    assert [word % 2**64 >> 11 for word in words.tolist()] == expected
    assert shares.tolist() == [number * total >> 53 for number in expected]


def test_greedy() -> None:
    logits = random_logits(8)
    logits[2:4] = (logits[2:4] * 2).round()  # equals
    logits[4] = -0.0
    logits[4, 4000] = 0.0
    logits[5] = -torch.inf
    logits[5, 5002] = -3e38
    logits[6, 4999] = math.nan
    logits[7, 17] = math.inf
    batch = SamplingBatch(seeds=[(1,)] * 7 + [(2, 3)], temperatures=[0.0] * 8)
    assert sample(logits, batch) == sample_reference(logits, batch)


def test_draws() -> None:
    for vocab_size in (1, 16, 2048, VOCAB_SIZE):
        logits = random_logits(3, vocab_size)
        temperatures = [0.1, 1.0, 50.0]
        check(logits, make_batch(3, seeds=[(1,), (-5, 2**63 + 7), (3,)], temperatures=temperatures))


FILTERS: list[tuple[int, float, float]] = [
    (0, 0.9, 0.0),
    (4500, 1.0, 0.0),
    (700, 0.9, 0.0),
    (40, 1.0, 0.0),
    (1, 1.0, 0.0),
    (VOCAB_SIZE, 1.0, 0.0),
    (-1, 1e-300, 0.0),
    (0, 1.0 - 2.0**-53, 0.0),
    (2**70, 1.0, 1.0),
    (0, 1.0, 0.02),
    (300, 0.7, 0.001),
]
"""top_k, top_p and min_p; the first leave more tokens than are bisected in registers."""


@pytest.mark.parametrize(("kind", "num_filters"), [("spread", len(FILTERS)), ("equals", 4), ("flat", 3)])
def test_filters(kind: str, num_filters: int) -> None:
    """Each row with another filter."""
    logits = random_logits(1)
    if kind == "equals":
        logits = (logits * 2).round()
    if kind == "flat":
        logits = logits * 0.01
    top_k, top_p, min_p = (list(column) for column in zip(*FILTERS[:num_filters], strict=True))
    batch = make_batch(num_filters, seeds=(11, 12), top_k=top_k, top_p=top_p, min_p=min_p)
    check(logits.expand(num_filters, VOCAB_SIZE), batch)


def test_numbers_far_apart_and_near() -> None:
    logits = random_logits(5, 4200)
    logits[0] = 0.0
    logits[0, 5] = 1e-38
    logits[1] *= 5e37
    logits[1, :2] = torch.tensor([3e38, -3e38])
    logits[2] = -torch.inf
    logits[2, 2000:2040] = random_logits(1, 40)[0]
    temperatures, top_k = [1.0, 1.0, 1.0, 1e-300, 1e300], [0, 3000, 50, 0, 20]
    batch = make_batch(5, temperatures=temperatures, top_k=top_k, top_p=[0.5, 1.0, 0.9, 1.0, 1.0])
    sampled = sample(logits, batch)
    check_draws(logits, batch, sampled)
    assert sampled.token_ids[3] == int(logits[3].argmax())


def test_changes() -> None:
    """All of them, alone and together, with tokens that come more than once."""
    logits = random_logits(8)
    logits[7, 3] = math.nan
    common = {"prompt_token_ids": [5, 5, 70, 4000], "output_token_ids": [70, 9, 9, 9, 5002] * 300}
    masks = pack([{9, 70, 80, 4096}, set(range(0, VOCAB_SIZE, 3))], VOCAB_SIZE)
    changes = {
        0: LogitChanges(repetition_penalty=1.7, **common),
        1: LogitChanges(presence_penalty=2.5, frequency_penalty=-0.01, **common),
        2: LogitChanges(logit_bias={7: 30.0, 5002: -2.0, 8: 29.5}, suppressed_token_ids=[1, 2, 2, 7]),
        3: LogitChanges(token_mask=0, allowed_token_ids=[80, 81, 9, 4096, 80], logit_bias={9: 3.0}),
        4: LogitChanges(
            token_mask=1,
            suppressed_token_ids=tuple(range(2000)),
            logit_bias={3000: 6.0, 9: 1.0},
            repetition_penalty=0.5,
            presence_penalty=-0.5,
            frequency_penalty=0.25,
            **common,
        ),
        6: LogitChanges(token_mask=0, allowed_token_ids=[81]),  # nothing is left
        7: LogitChanges(allowed_token_ids=[81]),  # not numbers before
    }
    temperatures = [1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    columns: dict[str, Any] = {"seeds": (3, 4), "temperatures": temperatures, "num_logprobs": 1}
    check(logits, make_batch(8, changes=changes, token_masks=masks, **columns))


def test_most_likely_tokens() -> None:
    """Of changed log-probabilities, beside draws, and described as the model had them."""
    logits = random_logits(5, 4100)
    logits[2] = (logits[2] * 2).round()
    common = {"presence_penalty": 1.5, "repetition_penalty": 1.5}
    top = logits.topk(4).indices.tolist()
    changes = {
        0: LogitChanges(token_mask=0, logit_bias={9: 3.0}),
        1: LogitChanges(output_token_ids=top[1], suppressed_token_ids=[9], **common),
        3: LogitChanges(allowed_token_ids=top[3][2:], **common),
    }
    columns: dict[str, Any] = {"num_best": [5, 20, 300, 6, 0], "num_logprobs": [1, -1, 0, -1, -1]}
    seeds = [(), (), (), (), (7,)]
    masks = pack([{9, 70, 80, 4096}], 4100)
    batch = make_batch(5, seeds=seeds, temperatures=0.0, changes=changes, token_masks=masks, **columns)
    sampled, expected = sample(logits, batch), sample_reference(logits, batch)
    assert sampled.token_ids == expected.token_ids and sampled.ranks == expected.ranks
    assert sampled.scores == pytest.approx(expected.scores, abs=4e-6)
    assert sampled.logprobs == pytest.approx(expected.logprobs, abs=2e-6, nan_ok=True)
    assert sampled.top.keys() == expected.top.keys()


def test_descriptions() -> None:
    """Lists of every length, over equals and what is ruled out; temperatures and filters do not matter to them."""
    logits = random_logits(6)
    logits[1] = (logits[1] * 2).round()
    logits[2, 40:] = -torch.inf
    logits[3, 17] = math.nan
    num_logprobs = [0, 20, 60, 3, -1, 300]
    check(logits, make_batch(6, seeds=[(1, 2)] * 6, temperatures=0.5, num_logprobs=num_logprobs))


def test_a_row_does_not_depend_on_the_others() -> None:
    logits = random_logits(4)
    changes = {1: LogitChanges(logit_bias={9: 2.0}), 3: LogitChanges(presence_penalty=1.0, output_token_ids=[3, 4])}
    columns: dict[str, Any] = {
        "seeds": [(row, 5) for row in range(4)],
        "temperatures": [0.0, 1.5, 1.0, 3.0],
        "positions": [9, 8, 2**33, 5],
        "top_k": [0, 0, 50, 0],
        "top_p": [1.0, 0.8, 1.0, 1.0],
        "num_logprobs": [-1, 2, 0, -1],
    }
    batch = make_batch(4, changes=changes, **columns)
    together = sample(logits, batch)
    for row in range(4):
        alone = sample(logits[row : row + 1], row_of(batch, row))
        assert alone.token_ids == together.token_ids[2 * row : 2 * row + 2]
        assert repr(alone.logprobs) == repr(together.logprobs[2 * row : 2 * row + 2])
        assert alone.top.get(0) == together.top.get(row)


def test_strides() -> None:
    """What lies beside a row is not looked at."""
    wide = torch.full((2, VOCAB_SIZE + 9), torch.nan)
    wide[:, 3 : VOCAB_SIZE + 3] = random_logits(2)
    batch = make_batch(2, top_k=[7, 0], num_logprobs=[-1, 2])
    assert repr(sample(wide[:, 3 : VOCAB_SIZE + 3], batch)) == repr(sample(random_logits(2), batch))


def test_resident_rows(device: torch.device) -> None:
    """The same tokens as of a launch, step after step out of the same memory, whatever the step before has left."""
    sampler = ResidentSampler(4, VOCAB_SIZE, device)
    logits = random_logits(4).to(device)
    filtered = make_batch(3, temperatures=[0.7, 0.0, 1.0], top_k=[40, 0, 0], top_p=[0.9, 1.0, 0.5])
    greedy = SamplingBatch(seeds=[(7,)], temperatures=[0.0])
    plain = make_batch(2, seeds=[(8,), (-9,)], positions=[5, 6])
    for batch, asked in ((filtered, (True, True)), (greedy, (False, False)), (plain, (False, False))):
        num_rows = len(batch.seeds)
        filters = sampler.write(batch)
        assert filters == Filters(*asked)
        expected = launch(logits[:num_rows], batch).read()
        sampler.run(logits)  # of more rows than the batch, with all filters
        samples = sampler.samples(num_rows)
        sampler.token_ids.zero_()
        assert samples.read() == expected
        sampler.run(logits[:num_rows], filters)
        assert sampler.token_ids[:num_rows].tolist() == expected.token_ids
    assert is_plain(plain) and not is_plain(make_batch(2, seeds=[(1,), (2, 3)]))
    assert not is_plain(make_batch(2, num_logprobs=[0, -1]))
    with pytest.raises(KernelError, match="4 rows"):
        sampler.write(make_batch(5))
    with pytest.raises(KernelError, match="top_p"):
        sampler.write(make_batch(2, top_p=0.0))


def test_resident_rows_that_are_counted(device: torch.device) -> None:
    """Among others; the tokens of one step are in the counts of the next."""
    logits = random_logits(3, 600).to(device)
    found = []
    for resident in (False, True):
        counts = TokenCounts.make(4, 600, device)
        counts.begin(
            torch.tensor([2, 1], device=device), torch.tensor([[1.5, 0.5, 1.0], [0.5, 0.0, 0.0]], device=device)
        )
        counts.add(torch.tensor([2 * 600 + 5], device=device), torch.tensor([1 * 600 + 9], device=device))
        sampler = ResidentSampler(4, 600, device, counts)
        drawn = []
        for position in range(6):
            batch = make_batch(3, seeds=[(7,), (8,), (9,)], positions=position, temperatures=[1.0, 0.0, 0.0])
            batch.counted, batch.token_counts = [1, -1, 2], counts
            assert is_plain(batch, counts) and not is_plain(batch)
            if resident:
                sampler.write(batch)
                sampler.run(logits)
                drawn.append(sampler.samples(3).read().token_ids)
            else:
                drawn.append(launch(logits, batch).read().token_ids)
        found.append((drawn, counts.counts.tolist()))
    assert found[0] == found[1]
    assert len({tokens[2] for tokens in found[0][0]}) > 1, "a penalty that changes nothing"


def test_penalties_are_the_references_to_the_bit(device: torch.device) -> None:
    logits = random_logits(3, 4100)
    texts = [[1, 2, 2, 4099] * 5, [7], [2048, 2047, 2048]]
    penalties = [(1.1, 0.3, -0.7), (0.37, 0.0, 1.9), (999.0, 1.0 / 3.0, 0.1)]
    counts = TokenCounts.make(3, 4100, device)
    counts.begin(torch.arange(3, device=device), torch.tensor(penalties, device=device))
    for row, text in enumerate(texts):
        prompt, output = (torch.tensor([row * 4100 + t for t in tokens], device=device) for tokens in ([3, 2], text))
        counts.add(prompt, output)
    batch = make_batch(3)
    batch.counted, batch.token_counts = [0, 1, 2], counts
    jobs = read_jobs(logits, batch)
    assert jobs.add_copies(0) == 3
    words = bytearray().join(line.tobytes() for line in jobs.lines())
    table = torch.frombuffer(words, dtype=torch.int64).view(-1, 3)
    changed = torch.empty(3, 4100, device=device)
    scratch = Scratch.make(3, 4100, device)
    Passes(logits.to(device), table.to(device), scratch, changed=changed, counts=counts).penalise(0)
    for row, (repetition, frequency, presence) in enumerate(penalties):
        changes = LogitChanges(
            repetition_penalty=repetition,
            frequency_penalty=frequency,
            presence_penalty=presence,
            prompt_token_ids=[3, 2],
            output_token_ids=texts[row],
        )
        assert torch.equal(changed[row].cpu(), change_logits(logits[row], changes))


class NoReading(TorchDispatchMode):
    """Fails where a value of a tensor is asked for: on a GPU that waits."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.is_nonzero.default,
            torch.ops.aten.nonzero.default,
            torch.ops.aten.equal.default,
        ), func
        return func(*args, **(kwargs or {}))


def test_a_launch_reads_nothing(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels apart, which only run here."""
    logits = random_logits(4, 600).to(device)
    batch = make_batch(
        4,
        seeds=[(1,), (2, 3), (), ()],
        top_p=0.9,
        num_best=[0, 0, 3, 0],
        given=[(), (), (), (5, 6)],
        num_logprobs=[2, -1, 400, 0],
        changes={0: LogitChanges(logit_bias={3: 1.0}), 2: LogitChanges(presence_penalty=1.0, output_token_ids=[1])},
    )
    batch.counted, batch.token_counts = [1, -1, -1, -1], TokenCounts.make(2, 600, device)
    run = Kernel.run

    def run_apart(*args: Any, **kwargs: Any) -> Any:
        with torch.utils._python_dispatch._disable_current_modes():
            return run(*args, **kwargs)

    monkeypatch.setattr(Kernel, "run", run_apart)
    with NoReading():
        samples = launch(logits, batch)
    assert samples.token_ids.device == logits.device
    assert samples.token_ids.tolist() == samples.read().token_ids


def test_what_is_compiled_ahead_is_what_is_launched(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a start launches each of them once."""
    launched = set()
    run = Kernel.run

    def run_noted(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        constants = {name: value for name, value in kwargs.items() if name in ("COUNT", "BEST", "MASS")}
        launched.add((kernel.fn.__name__, kwargs["num_warps"], *sorted(constants.items())))
        return run(kernel, *args, **kwargs)

    monkeypatch.setattr(Kernel, "run", run_noted)
    warm_up(COUNTS[-1] + 1, device)
    sizes = {"BLOCKS", "GROUPS"}
    compiled = {
        (case.kernel.fn.__name__, case.num_warps, *sorted((k, v) for k, v in case.constexprs.items() if k not in sizes))
        for case in aot_cases()
    }
    assert launched == compiled


def test_vocabularies_that_are_too_large() -> None:
    """The largest one's weights add up to an int64 even where each is the peak's."""
    assert MAX_VOCAB_SIZE << LOG2_UNITS.value < 2**63
    with pytest.raises(KernelError, match="524288"):
        sample(torch.zeros(1, 2**19 + 1), make_batch(1))
