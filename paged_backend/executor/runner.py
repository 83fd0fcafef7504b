"""One step of a loaded model: tensors in, drawn tokens out."""

from __future__ import annotations

import dataclasses
import time

import torch
from torch import Tensor

from paged_backend.executor.batch import BatchInputs
from paged_backend.executor.kv_storage import KVStorage
from paged_backend.executor.kv_transfer import KVTransfer
from paged_backend.executor.ranks import Ranks
from paged_backend.executor.step_work import StepWork
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
        ranks: Ranks,
        vocab_size: int,
    ) -> None:
        self._step = kernels.compile(lambda kernels, inputs: decoder(kernels, inputs, storage.layers))
        self._storage = storage
        self._kernels = kernels
        self._inputs = BatchInputs(block_size, num_groups)
        self._transfer = transfer
        self._masks = masks
        self._ranks = ranks
        self._vocab_size = vocab_size

    def run(self, plan: StepPlan) -> StepResult:
        """Moves blocks, copies blocks, computes every sequence's tokens, and draws where the plan asks for it."""
        with torch.inference_mode():
            work = StepWork(plan.transfers, plan.block_copies, self._inputs.build(plan) if plan.sequences else None)
            start_s = time.perf_counter()
            self._ranks.begin(work)
            with self._ranks.together():
                transfer_s, logits = self._compute(work)
            result = StepResult(()) if logits is None else self._drawn(plan, logits)
            if self._transfer is None:
                return result
            compute_s = time.perf_counter() - start_s - transfer_s
            return dataclasses.replace(result, transfer_s=transfer_s, compute_s=compute_s)

    def follow(self, work: StepWork) -> None:
        """`run` without the draws, for a rank that makes none."""
        with torch.inference_mode():
            self._compute(work)

    def _compute(self, work: StepWork) -> tuple[float, Tensor | None]:
        """What all ranks do: the seconds that moving blocks took, and logits, where there are sequences."""
        transfer_s = 0.0
        if work.transfers and self._transfer is not None:
            transfer_s = self._transfer.run(work.transfers)
        if work.block_copies:
            self._kernels.copy_blocks(self._storage.blocks, torch.tensor(work.block_copies, dtype=torch.int64))
        if work.inputs is None:
            return transfer_s, None
        shard = self._ranks.shard
        logits = self._step(shard.own_tokens(work.inputs, self._vocab_size))
        return transfer_s, logits if shard.size == 1 else logits[:, : self._vocab_size]

    def _drawn(self, plan: StepPlan, logits: Tensor) -> StepResult:
        tasks = [line.sampling for line in plan.sequences if line.sampling is not None]
        if not plan.scoring:
            return sample(self._kernels, logits, tasks, self._masks)
        scored = score(self._kernels, logits[len(tasks) :], plan.scoring)
        return dataclasses.replace(sample(self._kernels, logits[: len(tasks)], tasks, self._masks), scored=scored)
