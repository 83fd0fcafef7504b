"""One step of a loaded model: tensors in, drawn tokens out."""

from __future__ import annotations

import torch

from paged_backend.executor.batch import BatchInputs
from paged_backend.executor.kv_storage import KVStorage
from paged_backend.kernels.interface import Kernels
from paged_backend.models.decoder import Decoder
from paged_backend.sampling.sampler import sample
from paged_backend.scheduler.plan import StepPlan, StepResult


class Runner:
    """Computes plans on the model and its cache. One thread at a time."""

    def __init__(
        self, decoder: Decoder, storage: KVStorage, kernels: Kernels, block_size: int, num_groups: int = 1
    ) -> None:
        self._step = kernels.compile(lambda kernels, inputs: decoder(kernels, inputs, storage.layers))
        self._storage = storage
        self._kernels = kernels
        self._inputs = BatchInputs(block_size, num_groups)

    def run(self, plan: StepPlan) -> StepResult:
        """Copies blocks, computes every sequence's tokens, and draws where the plan asks for it."""
        with torch.inference_mode():
            if plan.block_copies:
                self._kernels.copy_blocks(self._storage.blocks, torch.tensor(plan.block_copies, dtype=torch.int64))
            if not plan.sequences:
                return StepResult(())
            logits = self._step(self._inputs.build(plan))
            tasks = [line.sampling for line in plan.sequences if line.sampling is not None]
            return sample(self._kernels, logits, tasks)
