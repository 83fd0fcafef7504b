"""Draws on the card against the distribution in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.gpu import truth
from benchmarks.gpu.verdict import Verdict
from paged_backend.kernels.interface import Kernels
from paged_backend.kernels.reference.random_bits import uniform
from paged_backend.kernels.sampling_batch import SamplingBatch

_NUM_ROWS = 4
_BORDER = 2e-6  # of the distribution: weights are float32


def sampling_checks(
    kernels: Kernels, device: torch.device, vocab_size: int
) -> Iterator[tuple[str, Callable[[], Verdict]]]:
    """(case, how to check it)."""
    for case, temperature, top_k in (("greedy", 0.0, 0), ("temperature", 0.8, 0), ("temperature, top-k", 1.3, 20)):
        yield case, partial(_draws, kernels, device, vocab_size, temperature, top_k)
    yield "logprobs", partial(_logprobs, kernels, device, vocab_size)


def _batch(rows: range, temperature: float, top_k: int, num_logprobs: int = -1) -> SamplingBatch:
    count = len(rows)
    return SamplingBatch(
        seeds=[(17 * row + 1,) for row in rows],
        temperatures=[temperature] * count,
        positions=[row + 5 for row in rows],
        top_k=[top_k] * count,
        top_p=[1.0] * count,
        min_p=[0.0] * count,
        num_logprobs=[num_logprobs] * count,
    )


def _draws(kernels: Kernels, device: torch.device, vocab_size: int, temperature: float, top_k: int) -> Verdict:
    logits = 2 * torch.randn(_NUM_ROWS, vocab_size, device=device)
    tokens = kernels.sample(logits, _batch(range(_NUM_ROWS), temperature, top_k)).token_ids
    worst = max(
        truth.draw_distance(logits[row], token, uniform(17 * row + 1, row + 5), temperature, top_k)
        for row, token in enumerate(tokens)
    )
    alone = kernels.sample(logits[2:3], _batch(range(2, 3), temperature, top_k)).token_ids
    return Verdict("", "", worst, _BORDER, alone == tokens[2:3])


def _logprobs(kernels: Kernels, device: torch.device, vocab_size: int) -> Verdict:
    logits = 2 * torch.randn(_NUM_ROWS, vocab_size, device=device)
    sampled = kernels.sample(logits, _batch(range(_NUM_ROWS), 1.0, 0, num_logprobs=2))
    exact = logits.double().log_softmax(1)
    off = [abs(float(exact[row, token]) - sampled.logprobs[row]) for row, token in enumerate(sampled.token_ids)]
    off += [abs(float(exact[row, token]) - value) for row, top in sampled.top.items() for token, value in top]
    best = exact.topk(2, dim=1).indices.tolist()
    listed = [[token for token, _ in sampled.top[row]] for row in range(_NUM_ROWS)]
    alone = kernels.sample(logits[1:2], _batch(range(1, 2), 1.0, 0, num_logprobs=2))
    same = alone.logprobs == sampled.logprobs[1:2] and alone.top[0] == sampled.top[1]
    return Verdict("", "", max(off) if listed == best else float("inf"), 1e-5, same)
