"""One step of a loaded model: tensors in, drawn tokens out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from paged_backend.executor.batch import BatchInputs, BuiltInputs
from paged_backend.executor.device import Device, Ordered
from paged_backend.executor.kv_storage import KVStorage
from paged_backend.executor.kv_transfer import KVTransfer
from paged_backend.executor.pending import LaunchedStep, StepOutput
from paged_backend.executor.ranks import Ranks
from paged_backend.executor.step_work import StepWork
from paged_backend.kernels.interface import Kernels
from paged_backend.kv.host_tier import Transfers
from paged_backend.sampling.counted_tokens import CountedTokens
from paged_backend.sampling.description import score
from paged_backend.sampling.sampler import sample
from paged_backend.sampling.unseen import UnseenDraws, prepare_draws
from paged_backend.scheduler.plan import StepPlan, StepResult
from paged_backend.structured.token_masks import TokenMasks


class Runner:
    """Computes plans on the model and its cache. One thread at a time.

    A plan is read when it is launched: its lines and tasks may be changed afterwards, but for a step that has something
    to draw that needs the host (`SamplingTask.needs_host`): that is drawn when the result is asked for, and no step
    may be launched in between that needs its tokens.
    """

    def __init__(
        self,
        step: Callable[[BuiltInputs], Tensor],
        drawn: Tensor,
        storage: KVStorage,
        kernels: Kernels,
        block_size: int,
        num_groups: int = 1,
        transfer: KVTransfer | None = None,
        *,
        masks: TokenMasks,
        counted: CountedTokens | None,
        device: Device,
        ranks: Ranks,
    ) -> None:
        """
        Args:
            step: from inputs on the device to logits, on the storage.
            drawn: int64 [N], where it finds the tokens of the step before; N: as many as a step draws at most.
            counted: the tokens of sequences with penalties; None where nothing is drawn unseen.
        """
        self._step = step
        self._storage = storage
        self._kernels = kernels
        self._inputs = BatchInputs(block_size, num_groups)
        self._transfer = transfer
        self._masks = masks
        self._counted = counted
        self._device = device
        self._ranks = ranks
        self._drawn = drawn

    def launch(self, plan: StepPlan) -> LaunchedStep:
        """Has blocks moved and copied, every sequence's tokens computed, and drawn where the plan asks for it."""
        device, kernels = self._device, self._kernels
        tasks = [line.sampling for line in plan.sequences if line.sampling is not None]
        draws = None
        if tasks and self._counted is not None and plan.draws_unseen:
            draws = prepare_draws(tasks, self._counted)
        built = self._inputs.build(plan) if plan.sequences else None
        work = StepWork(plan.transfers, plan.block_copies, built)
        self._ranks.begin(work)
        output = self._order(work, draws)

        def draw(logits: Tensor) -> StepResult:
            with torch.inference_mode():
                if not plan.scoring:
                    return sample(kernels, logits, tasks, self._masks)
                scored = score(kernels, logits[len(tasks) :], plan.scoring)
                drawn = sample(kernels, logits[: len(tasks)], tasks, self._masks)
                return dataclasses.replace(drawn, scored=scored)

        return LaunchedStep(output, tasks, draw, device, is_timed=self._transfer is not None)

    def follow(self, work: StepWork) -> None:
        """Another rank than the first: what that one does in `launch`, without the draws."""
        self._order(work, None).result()

    def _order(self, work: StepWork, draws: UnseenDraws | None) -> Ordered[StepOutput]:
        device, built = self._device, work.built
        tensors = () if built is None else built.tensors
        copies = [torch.tensor(work.block_copies, dtype=torch.int64)] if work.block_copies else []
        told = () if draws is None else draws.tensors
        lent = iter(device.lend([*tensors, *copies, *told]))
        on_device = None if built is None else built.with_tensors([next(lent) for _ in tensors])
        pairs = next(lent) if copies else None
        lent_draws = None if draws is None else draws.with_tensors(lent)
        return device.order(lambda: self._work(work.transfers, pairs, on_device, lent_draws))

    def _work(
        self, transfers: Transfers, copies: Tensor | None, built: BuiltInputs | None, draws: UnseenDraws | None
    ) -> StepOutput:
        """What the device does: of the plan it looks at nothing that changes."""
        with self._ranks.together():
            return self._computed(transfers, copies, built, draws)

    def _computed(
        self, transfers: Transfers, copies: Tensor | None, built: BuiltInputs | None, draws: UnseenDraws | None
    ) -> StepOutput:
        mark = _no_time if self._transfer is None else self._device.mark
        if self._transfer is not None:
            self._transfer.save(transfers.saves)
        begin = mark()
        if transfers:
            assert self._transfer is not None
            self._transfer.swap(transfers)
        moved = mark()
        if copies is not None:
            self._kernels.copy_blocks(self._storage.blocks, copies)
        if built is None:
            return StepOutput(None, None, (begin, moved, mark()))
        if built.has_unknown:
            self._ranks.share(self._drawn)
        logits = self._step(built)
        if draws is None:
            return StepOutput(logits, None, (begin, moved, mark()))
        samples = draws.launch(self._kernels, logits)
        self._drawn[: len(draws.batch.seeds)] = samples.token_ids
        return StepOutput(logits, samples, (begin, moved, mark()))


def _no_time() -> None:
    """In place of a mark, where nobody asks for seconds."""
