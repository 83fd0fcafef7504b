"""Penalties by `TokenCounts` for implementations that take lists of tokens: on the CPU, where counts can be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from paged_backend.kernels.sampling_batch import LogitChanges, SampledBatch, SamplingBatch, check_sampling
from paged_backend.kernels.token_counts import IN_PROMPT, TokenCounts


def sample_counted(
    sample: Callable[[Tensor, SamplingBatch], SampledBatch], logits: Tensor, batch: SamplingBatch
) -> SampledBatch:
    """What `sample` draws with the tokens that are counted as lists; counts what it draws.

    Raises:
        KernelError: the batch is not what `SamplingBatch` says.
    """
    check_sampling(logits, batch)
    counts = batch.token_counts
    assert counts is not None
    counted = {row: place for row, place in enumerate(batch.counted) if place >= 0}
    listed = {row: _listed(counts, place, batch.changes.get(row, LogitChanges())) for row, place in counted.items()}
    sampled = sample(logits, replace(batch, changes={**batch.changes, **listed}, counted=(), token_counts=None))
    others = zip(batch.num_best or [0] * len(batch.seeds), batch.given or [()] * len(batch.seeds), strict=True)
    sizes = [best or len(given or seeds) for seeds, (best, given) in zip(batch.seeds, others, strict=True)]
    starts = [0, *accumulate(sizes)]
    for row, place in counted.items():
        if (token := sampled.token_ids[starts[row]]) >= 0:
            counts.counts[place, token] += 1
    return sampled


def _listed(counts: TokenCounts, place: int, changes: LogitChanges) -> LogitChanges:
    own = counts.counts[place]
    tokens = own.nonzero()[:, 0]
    found = own[tokens]
    repetition, frequency, presence = counts.penalties[place].tolist()
    return changes._replace(
        repetition_penalty=repetition,
        frequency_penalty=frequency,
        presence_penalty=presence,
        prompt_token_ids=tokens[found >= IN_PROMPT].tolist(),
        output_token_ids=torch.repeat_interleave(tokens, (found & (IN_PROMPT - 1)).long()).tolist(),
    )
