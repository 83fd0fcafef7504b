"""Drawing without looking: the tokens stay where the logits are, and are read when the next step is under way."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.interface import Kernels
from paged_backend.kernels.sampling_batch import LaunchedSamples, ReadSamples, SampledBatch, SamplingBatch
from paged_backend.sampling.sampler import described_tokens
from paged_backend.scheduler.plan import NOT_DRAWN, SamplingTask, StepResult

logger = logging.getLogger(__name__)

_COLUMNS = ("seeds", "temperatures", "positions", "top_k", "top_p", "min_p", "num_logprobs")


def launch_draws(kernels: Kernels, logits: Tensor, batch: SamplingBatch) -> LaunchedSamples:
    """`Kernels.launch_sample`, but a row that the kernels refuse leaves nothing to draw, and its neighbours go on."""
    try:
        return kernels.launch_sample(logits, batch)
    except KernelError:
        rows = [_draw_row(kernels, logits[row : row + 1], _row_of(batch, row)) for row in range(logits.shape[0])]
        return _Apart(rows, logits.device)


def read_draws(samples: LaunchedSamples, tasks: Sequence[SamplingTask]) -> StepResult:
    """What was drawn, one token for each task."""
    sampled = samples.read()
    return StepResult(sampled.token_ids, described_tokens(sampled, tasks) if sampled.logprobs else {})


class _Apart:
    """Rows that were drawn each by itself."""

    def __init__(self, rows: Sequence[LaunchedSamples], device: torch.device) -> None:
        # What was refused is known to the host alone.
        self.token_ids = torch.cat([row.token_ids.to(device, non_blocking=True) for row in rows])
        self._rows = rows

    def read(self) -> SampledBatch:
        whole = SampledBatch([])
        sampled = [row.read() for row in self._rows]
        describes = any(one.logprobs for one in sampled)
        for row, one in enumerate(sampled):
            whole.token_ids += one.token_ids
            if describes:
                whole.logprobs += one.logprobs or [0.0]
                whole.ranks += one.ranks or [0]
                if one.top:
                    whole.top[row] = one.top[0]
        return whole


def _draw_row(kernels: Kernels, logits: Tensor, batch: SamplingBatch) -> LaunchedSamples:
    try:
        return kernels.launch_sample(logits, batch)
    except KernelError:
        logger.exception("a row cannot be sampled; its request ends")
        return ReadSamples(SampledBatch([NOT_DRAWN]))


def _row_of(batch: SamplingBatch, row: int) -> SamplingBatch:
    columns = {name: getattr(batch, name)[row : row + 1] for name in _COLUMNS}
    changes = {0: batch.changes[row]} if row in batch.changes else {}
    return replace(batch, **columns, changes=changes)
