"""One step of a loaded model: tensors in, drawn tokens out."""

from __future__ import annotations

import dataclasses
import time

import torch

from paged_backend.executor.batch import BatchInputs
from paged_backend.executor.kv_storage import KVStorage
from paged_backend.executor.kv_transfer import KVTransfer
from paged_backend.kernels.interface import Kernels
from paged_backend.models.decoder import Decoder
from paged_backend.sampling.description import score
from paged_backend.sampling.sampler import sample
from paged_backend.scheduler.plan import StepPlan, StepResult
from paged_backend.structured.token_masks import TokenMasks


class Runner:
    """Computes plans on the model and its cache. One thread at a time."""

    def __init__(
        self,
        decoder: Decoder,
        storage: KVStorage,
        kernels: Kernels,
        block_size: int,
        num_groups: int = 1,
        transfer: KVTransfer | None = None,
        *,
        masks: TokenMasks,
    ) -> None:
        self._step = kernels.compile(lambda kernels, inputs: decoder(kernels, inputs, storage.layers))
        self._storage = storage
        self._kernels = kernels
        self._inputs = BatchInputs(block_size, num_groups)
        self._transfer = transfer
        self._masks = masks

    def run(self, plan: StepPlan) -> StepResult:
        """Moves blocks, copies blocks, computes every sequence's tokens, and draws where the plan asks for it."""
        with torch.inference_mode():
            if self._transfer is None:
                return self._compute(plan)
            transfer_s = self._transfer.run(plan.transfers) if plan.transfers else 0.0
            start_s = time.perf_counter()
            result = self._compute(plan)
            return dataclasses.replace(result, transfer_s=transfer_s, compute_s=time.perf_counter() - start_s)

    def _compute(self, plan: StepPlan) -> StepResult:
        if plan.block_copies:
            self._kernels.copy_blocks(self._storage.blocks, torch.tensor(plan.block_copies, dtype=torch.int64))
        if not plan.sequences:
            return StepResult(())
        logits = self._step(self._inputs.build(plan))
        tasks = [line.sampling for line in plan.sequences if line.sampling is not None]
        if not plan.scoring:
            return sample(self._kernels, logits, tasks, self._masks)
        scored = score(self._kernels, logits[len(tasks) :], plan.scoring)
        return dataclasses.replace(sample(self._kernels, logits[: len(tasks)], tasks, self._masks), scored=scored)
