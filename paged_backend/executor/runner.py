"""One step of a loaded model: tensors in, drawn tokens out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.executor.batch import BatchInputs, BuiltInputs
from paged_backend.executor.device import Device, Ordered
from paged_backend.executor.kv_storage import KVStorage
from paged_backend.executor.kv_transfer import KVTransfer
from paged_backend.executor.pending import LaunchedStep, StepOutput
from paged_backend.executor.ranks import Ranks
from paged_backend.executor.recorded_draws import RecordedDraws
from paged_backend.executor.step_work import StepWork
from paged_backend.kernels.interface import Kernels
from paged_backend.kernels.sampling_batch import LaunchedSamples, SamplingBatch
from paged_backend.kv.host_tier import Transfers
from paged_backend.sampling.description import score
from paged_backend.sampling.sampler import build_batch, sample
from paged_backend.sampling.unseen import can_be_unseen, launch_draws
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
        num_groups: int = 1,
        transfer: KVTransfer | None = None,
        draws: RecordedDraws | None = None,
        *,
        masks: TokenMasks,
        device: Device,
        ranks: Ranks,
    ) -> None:
        """
        Args:
            step: from inputs on the device to logits, on the storage.
            drawn: int64 [N], where it finds the tokens of the step before; N: as many as a step draws at most.
            draws: what its recordings end with.
        """
        self._step = step
        self._storage = storage
        self._kernels = kernels
        self._inputs = BatchInputs(block_size, num_groups)
        self._transfer = transfer
        self._masks = masks
        self._device = device
        self._ranks = ranks
        self._drawn = drawn
        self._draws = draws

    def launch(self, plan: StepPlan) -> LaunchedStep:
        """Has blocks moved and copied, every sequence's tokens computed, and drawn where the plan asks for it."""
        device, kernels = self._device, self._kernels
        tasks = [line.sampling for line in plan.sequences if line.sampling is not None]
        unseen = self._unseen(plan, tasks) if tasks and device.overlaps else None
        built = self._inputs.build(plan) if plan.sequences else None
        work = StepWork(plan.transfers, plan.block_copies, None if built is None else built.inputs)
        self._ranks.begin(work)
        output = self._order(work, built, unseen)

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
        built = None if work.inputs is None else BuiltInputs.of(work.inputs)
        self._order(work, built, None).result()

    def _unseen(self, plan: StepPlan, tasks: Sequence[SamplingTask]) -> _Unseen | None:
        """How the device draws a plan's tokens by itself; None where the host has to."""
        recorded = self._draws
        if recorded is not None and recorded.holds(plan):
            return _Unseen(len(tasks), None, None)
        if not can_be_unseen(plan):
            return None
        batch = build_batch(tasks)
        if recorded is not None and recorded.serves(plan, batch):
            with suppress(KernelError):  # row by row it is found out which it is
                return _Unseen(len(tasks), None, recorded.words(plan, batch))
        return _Unseen(len(tasks), batch, None)

    def _order(self, work: StepWork, built: BuiltInputs | None, unseen: _Unseen | None) -> Ordered[StepOutput]:
        device = self._device
        tensors = () if built is None else built.tensors
        moves = []
        if work.transfers.swap_outs or work.transfers.swap_ins:
            assert self._transfer is not None
            moves = self._transfer.pairs(work.transfers)
        copies = [torch.tensor(work.block_copies, dtype=torch.int64)] if work.block_copies else []
        words = [] if unseen is None or unseen.words is None else [unseen.words]
        try:
            lent = iter(device.lend([*tensors, *moves, *copies, *words]))
        except Exception as error:  # memory is short: this step's end, not the engine's
            return device.order(partial(self._fail, error))
        return device.order(
            partial(
                self._work,
                None if built is None else built.with_tensors([next(lent) for _ in tensors]),
                work.transfers,
                [next(lent) for _ in moves],
                next(lent) if copies else None,
                unseen,
                next(lent) if words else None,
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
        unseen: _Unseen | None,
        parameters: Tensor | None,
    ) -> StepOutput:
        """What the device does: of the plan it looks at nothing that changes."""
        with self._ranks.together():
            moved = None
            if self._transfer is not None:
                self._transfer.save(transfers.saves)
                if moves:
                    moved = self._transfer.swap(transfers, moves)
            mark = _no_time if self._transfer is None else self._device.mark
            begin = mark()
            if copies is not None:
                self._kernels.copy_blocks(self._storage.blocks, copies)
            if parameters is not None:
                assert self._draws is not None
                self._draws.place(parameters)
            logits = None if built is None else self._step(built)
            samples = None if logits is None or unseen is None else self._drawn_by(unseen, logits)
            end = mark()
            return StepOutput(logits, samples, None if self._transfer is None else (begin, end), moved)

    def _drawn_by(self, unseen: _Unseen, logits: Tensor) -> LaunchedSamples:
        if unseen.batch is None:
            assert self._draws is not None
            return self._draws.samples(unseen.num_rows)
        samples = launch_draws(self._kernels, logits, unseen.batch)
        self._drawn[: unseen.num_rows] = samples.token_ids
        return samples


@dataclass(frozen=True, slots=True)
class _Unseen:
    """How the device draws a step's tokens by itself.

    Attributes:
        num_rows: that are drawn.
        batch: what is launched behind the step; None where a recording ends with the draw.
        words: what must be in place for that (`RecordedDraws.place`); None where it is already.
    """

    num_rows: int
    batch: SamplingBatch | None
    words: Tensor | None


def _no_time() -> None:
    """In place of a mark, where nobody asks for seconds."""
