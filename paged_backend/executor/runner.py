"""One step of a loaded model: tensors in, drawn tokens out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from paged_backend.executor.batch import BatchInputs, BuiltInputs
from paged_backend.executor.device import Device, Ordered
from paged_backend.executor.kv_storage import KVStorage
from paged_backend.executor.kv_transfer import KVTransfer
from paged_backend.executor.pending import LaunchedStep, StepOutput
from paged_backend.executor.ranks import Ranks
from paged_backend.executor.recorded_draws import RecordedDraw, RecordedDraws
from paged_backend.executor.step_work import StepWork
from paged_backend.kernels.interface import Kernels
from paged_backend.kv.host_tier import Transfers
from paged_backend.sampling.counted_tokens import CountedTokens
from paged_backend.sampling.description import score
from paged_backend.sampling.sampler import sample
from paged_backend.sampling.unseen import UnseenDraws, prepare_draws
from paged_backend.scheduler.plan import SamplingTask, StepPlan, StepResult
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
        num_groups: int,
        *,
        transfer: KVTransfer | None,
        recorded: RecordedDraws | None,
        masks: TokenMasks,
        counted: CountedTokens | None,
        device: Device,
        ranks: Ranks,
    ) -> None:
        """
        Args:
            step: from inputs on the device to logits, on the storage.
            drawn: int64 [N], where it finds the tokens of the step before; N: as many as a step draws at most.
            recorded: the draws that recorded steps end with; None where none do.
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
        self._recorded = recorded

    def launch(self, plan: StepPlan) -> LaunchedStep:
        """Has blocks moved and copied, every sequence's tokens computed, and drawn where the plan asks for it."""
        device, kernels = self._device, self._kernels
        tasks = [line.sampling for line in plan.sequences if line.sampling is not None]
        draws = self._unseen(plan, tasks) if tasks else None
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

        return LaunchedStep(output, tasks, draw, device)

    def follow(self, work: StepWork) -> None:
        """Another rank than the first: what that one does in `launch`, without the draws."""
        self._order(work, None).result()

    def _unseen(self, plan: StepPlan, tasks: Sequence[SamplingTask]) -> RecordedDraw | UnseenDraws | None:
        """How the device draws a plan's tokens by itself; None where the host has to."""
        recorded = self._recorded
        known = None if recorded is None else recorded.known(plan)
        if known is not None or self._counted is None or not plan.draws_unseen:
            return known
        draws = prepare_draws(tasks, self._counted)
        return draws if recorded is None else recorded.instead(plan, draws)

    def _order(self, work: StepWork, draws: RecordedDraw | UnseenDraws | None) -> Ordered[StepOutput]:
        device, built = self._device, work.built
        tensors = () if built is None else built.tensors
        moves: list[Tensor] = []
        if work.transfers.swap_outs or work.transfers.swap_ins:
            assert self._transfer is not None
            moves = self._transfer.pairs(work.transfers)
        copies = [torch.tensor(work.block_copies, dtype=torch.int64)] if work.block_copies else []
        told = () if draws is None else draws.tensors
        try:
            lent = iter(device.lend([*tensors, *moves, *copies, *told]))
        except Exception as error:  # memory is short: that is this step's end, not the engine's
            return device.order(partial(self._fail, error))
        return device.order(
            partial(
                self._work,
                None if built is None else built.with_tensors([next(lent) for _ in tensors]),
                work.transfers,
                [next(lent) for _ in moves],
                next(lent) if copies else None,
                None if draws is None else draws.with_tensors(lent),
            )
        )

    def _fail(self, error: Exception) -> StepOutput:
        with self._ranks.together():
            raise error

    def _work(
        self,
        built: BuiltInputs | None,
        transfers: Transfers,
        moves: Sequence[Tensor],
        copies: Tensor | None,
        draws: RecordedDraw | UnseenDraws | None,
    ) -> StepOutput:
        """What the device does: of the plan it looks at nothing that changes."""
        with self._ranks.together():
            moved = None
            if self._transfer is not None:
                self._transfer.save(transfers.saves)
                if moves:
                    moved = self._transfer.swap(transfers, moves)
            begin = self._mark()
            if copies is not None:
                self._kernels.copy_blocks(self._storage.blocks, copies)
            logits = samples = None
            if built is not None:
                if built.has_unknown:
                    self._ranks.share(self._drawn)
                if draws is not None:
                    draws.begin()
                logits = self._step(built)
                if draws is not None:
                    samples = draws.launch(self._kernels, logits, self._drawn)
            end = self._mark()
            return StepOutput(logits, samples, None if self._transfer is None else (begin, end), moved)

    def _mark(self) -> Any:
        """Where somebody asks for seconds."""
        return None if self._transfer is None else self._device.mark()
