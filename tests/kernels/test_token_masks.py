"""Token masks: bits that rule tokens out, before all else that changes logits."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.sampling_batch import LogitChanges
from tests.kernels.sampling_case import ALL, Sample, check_draws, make_batch

implementations = pytest.mark.parametrize("sample", ALL.values(), ids=ALL.keys())
VOCAB_SIZES = (1, 31, 32, 33, 300, 5003)


def pack(allowed: list[set[int]], vocab_size: int) -> Tensor:
    """The masks of such sets, bit by bit."""
    words = [[0] * -(-vocab_size // 32) for _ in allowed]
    for row, tokens in zip(words, allowed, strict=True):
        for token in tokens:
            row[token // 32] |= 1 << token % 32
    return torch.tensor([[word - 2**32 if word >= 2**31 else word for word in row] for row in words], dtype=torch.int32)


def random_set(rng: random.Random, vocab_size: int) -> set[int]:
    """Some tokens, one at least, in runs of whole words and alone."""
    words = [rng.choice((0.0, 0.0, 0.5, 1.0)) for _ in range(-(-vocab_size // 32))]
    tokens = {token for token in range(vocab_size) if rng.random() < words[token // 32]}
    return tokens or {rng.randrange(vocab_size)}


@implementations
@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_a_mask_is_a_set_of_allowed_tokens(sample: Sample, vocab_size: int) -> None:
    """Rows with masks give what the same rows give that name the same tokens one by one."""
    rng = random.Random(vocab_size)
    num_rows = 12
    logits = torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(vocab_size)) * 3
    allowed = [random_set(rng, vocab_size) for _ in range(num_rows // 2)]
    common: dict[str, Any] = {
        "seeds": [(row, row + 100) for row in range(num_rows)],
        "temperatures": [rng.choice((0.0, 0.7, 1.5)) for _ in range(num_rows)],
        "top_k": [rng.choice((0, 3)) for _ in range(num_rows)],
        "top_p": [rng.choice((1.0, 0.8)) for _ in range(num_rows)],
        "num_logprobs": 2,
    }
    more: dict[str, Any] = {"logit_bias": {0: 5.0}, "repetition_penalty": 1.3, "output_token_ids": [vocab_size - 1]}
    places = {2 * place: place for place in range(len(allowed))}
    masked = make_batch(
        num_rows,
        changes={row: LogitChanges(token_mask=place, **more) for row, place in places.items()},
        token_masks=pack(allowed, vocab_size),
        **common,
    )
    named = make_batch(
        num_rows,
        changes={row: LogitChanges(sorted(allowed[place]), **more) for row, place in places.items()},
        **common,
    )
    sampled = sample(logits, masked)
    assert sampled == sample(logits, named)
    check_draws(logits, masked, sampled)
    for row, place in places.items():
        assert set(sampled.token_ids[2 * row : 2 * row + 2]) <= allowed[place]


@implementations
def test_what_is_masked_stays_masked(sample: Sample) -> None:
    """No bias brings a token back, and a second restriction leaves what both allow."""
    logits, masks = torch.zeros(1, 40), pack([{3, 33}], 40)
    biased = LogitChanges(logit_bias={7: 100.0}, token_mask=0)
    for seed in range(20):
        drawn = sample(logits, make_batch(1, seeds=[(seed,)], changes={0: biased}, token_masks=masks)).token_ids
        assert drawn in ([3], [33])
    both = LogitChanges([7, 33], token_mask=0)
    assert sample(logits, make_batch(1, changes={0: both}, token_masks=masks)).token_ids == [33]
    for nothing in (LogitChanges([7], token_mask=0), LogitChanges(suppressed_token_ids=[3, 33], token_mask=0)):
        assert sample(logits, make_batch(1, changes={0: nothing}, token_masks=masks)).token_ids == [-1]


@implementations
def test_the_most_likely_tokens_of_a_mask(sample: Sample) -> None:
    logits = torch.arange(40.0)[None]
    batch = make_batch(1, num_best=4, changes={0: LogitChanges(token_mask=0)}, token_masks=pack([{2, 5, 39}], 40))
    sampled = sample(logits, batch)
    assert sampled.token_ids == [39, 5, 2, -1]
    assert sampled.scores[0] == pytest.approx(math.log(1 - math.exp(-1)), abs=1e-5)


@implementations
def test_wrong_masks(sample: Sample) -> None:
    logits = torch.zeros(2, 40)
    good = pack([{1}], 40)
    narrow, strided = torch.zeros(1, 1, dtype=torch.int32), torch.zeros(2, 4, dtype=torch.int32)[:, ::2]
    for wrong in (good.long(), good[0], narrow, strided):
        with pytest.raises(KernelError, match="token_masks"):
            sample(logits, make_batch(2, token_masks=wrong))
    for place in (1, -2, 2**40):
        with pytest.raises(KernelError, match="token_mask"):
            sample(logits, make_batch(2, changes={1: LogitChanges(token_mask=place)}, token_masks=good))
    wide = torch.cat([good, torch.full((1, 2), -1, dtype=torch.int32)], dim=1)  # words beyond the vocabulary
    batch = make_batch(2, changes={0: LogitChanges(token_mask=0)}, token_masks=wide)
    assert sample(logits, batch).token_ids[0] == 1
