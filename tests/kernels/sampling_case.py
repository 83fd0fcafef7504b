"""Sampling's implementations, and what a draw may give according to float64."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from paged_backend.kernels.cpu import _cpu
from paged_backend.kernels.cpu.sampling import sample as sample_cpu
from paged_backend.kernels.reference.random_bits import uniform
from paged_backend.kernels.reference.sampling import change_logits
from paged_backend.kernels.reference.sampling import sample as sample_reference
from paged_backend.kernels.sampling_batch import LogitChanges, SampledBatch, SamplingBatch

Sample = Callable[[Tensor, SamplingBatch], SampledBatch]

CPU: dict[str, Sample] = {
    name: functools.partial(sample_cpu, _cpu.Runtime(2, name)) for name in _cpu.available_instruction_sets()
}
ALL: dict[str, Sample] = {"reference": sample_reference} | CPU

TRITON: dict[str, Sample] = {}
if importlib.util.find_spec("triton") is not None:
    from paged_backend.kernels.triton.sampling.launch import sample as sample_triton

    DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    TRITON = {"triton": lambda logits, batch: sample_triton(logits.to(DEVICE), batch)}
EVERY: dict[str, Sample] = ALL | TRITON
"""For tests that draw little: without a GPU, Triton's kernels are interpreted, a tenth of a second a row."""

TOLERANCE = 1e-6
"""Of the distribution. The C++ weights are float32: 2e-8 from the polynomial of the exponential; 6e-8 of the exponent
from the rounding of logit - peak, which weighs most, by exp(-1), for tokens at one temperature below the peak; and the
eight additions of a block's sum, 6e-8 each. They add up to 6e-7 in the worst case, with all errors of one sign."""


def make_batch(num_rows: int, **columns: Any) -> SamplingBatch:
    """A batch whose columns are given as one value for all rows, or as a list."""
    values: dict[str, Any] = {
        "seeds": (1,),
        "temperatures": 1.0,
        "positions": 7,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
    }
    values |= columns
    changes, token_masks = values.pop("changes", {}), values.pop("token_masks", None)
    full = {name: value if isinstance(value, list) else [value] * num_rows for name, value in values.items()}
    return SamplingBatch(changes=changes, token_masks=token_masks, **full)


def row_of(batch: SamplingBatch, row: int) -> SamplingBatch:
    """A batch of one of its rows."""
    names = ("seeds", "temperatures", "positions", "top_k", "top_p", "min_p", "num_logprobs", "num_best", "given")
    columns = {name: list(getattr(batch, name))[row : row + 1] for name in names}
    changes = {0: batch.changes[row]} if row in batch.changes else {}
    return SamplingBatch(changes=changes, token_masks=batch.token_masks, **columns)


def kept_weights(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """float64 [V], in the order of ids: weights of the tokens that the filters leave, spelled out token by token."""
    values = logits.double()
    weights = ((values - values.max()) / temperature).exp()
    kept = weights >= min_p
    if 0 < top_k < len(logits):
        kept &= logits >= logits.sort(descending=True).values[top_k - 1]
    if top_p < 1.0:
        wanted = top_p * weights[kept].sum()
        total, edge = 0.0, -torch.inf
        for token in logits.argsort(descending=True).tolist():
            if total >= wanted or not kept[token]:
                break
            total, edge = total + weights[token].item(), logits[token].item()
        kept &= logits >= edge
    return weights * kept


def acceptable_tokens(logits: Tensor, batch: SamplingBatch, row: int, seed: int) -> set[int]:
    """What a seed may draw when filters and the point are right within TOLERANCE."""
    point = uniform(seed, batch.positions[row])
    tokens = set()
    for top_p in _around(batch.top_p[row]):
        for min_p in _around(batch.min_p[row]):
            sums = kept_weights(logits, batch.temperatures[row], batch.top_k[row], top_p, min_p).cumsum(0)
            for shift in (-TOLERANCE, 0.0, TOLERANCE):
                shifted = min(max(point + shift, 0.0), 1.0 - 2.0**-53)
                tokens.add(int(torch.searchsorted(sums, shifted * sums[-1], right=True)))
    return tokens


def _around(number: float) -> list[float]:
    exact = [number] if number in (0.0, 1.0) else [number, number * (1 - TOLERANCE), number * (1 + TOLERANCE)]
    return [min(value, 1.0) for value in exact]


def check_draws(logits: Tensor, batch: SamplingBatch, sampled: SampledBatch) -> None:
    """Every token is what float64 gives, or what it gives within TOLERANCE of the edge."""
    expected = iter(sample_reference(logits, batch).token_ids)
    drawn = iter(sampled.token_ids)
    for row, seeds in enumerate(batch.seeds):
        changes = batch.changes.get(row, LogitChanges())
        for seed in seeds:
            token, wanted = next(drawn), next(expected)
            if token == wanted:
                continue
            assert batch.temperatures[row] > 0.0, (row, token, wanted)
            changed = change_logits(logits[row], changes, batch.token_masks)
            assert token in acceptable_tokens(changed, batch, row, seed), (row, seed, token, wanted)
