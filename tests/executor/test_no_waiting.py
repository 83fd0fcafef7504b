"""Nothing between two steps waits for the device: neither the host, nor an operation that asks for a value."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from paged_backend.executor.batch import BuiltInputs
from paged_backend.executor.cuda_graph import GraphedStep, ScratchBlocks
from paged_backend.executor.device import CpuDevice
from paged_backend.kernels.interface import StepInputs
from paged_backend.kernels.token_counts import IN_PROMPT
from paged_backend.sampling.counted_tokens import CountedTokens
from paged_backend.sampling.unseen import prepare_draws
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import NOT_YET_DRAWN, SamplingTask
from tests.engine_driver import new_core, new_request

MODEL = Path(__file__).resolve().parents[2] / "model_store" / "paged-tiny"
TIMEOUT_S = 60.0

WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "equal", "item")
"""Operations that bring a value to the host, or whose result's size is one: on a GPU they wait for all before them."""


class Counting(TorchDispatchMode):
    """Counts operations, and notes those that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        name = func.overloadpacket.__name__
        if any(name == wait or name.startswith(f"{wait}_") for wait in WAITS):
            self.waits.append(name)
        return func(*args, **(kwargs or {}))


def test_counting_sees_a_wait() -> None:
    with Counting() as seen:
        numbers = torch.arange(3)
        int(numbers[1])
        numbers[numbers > 1]
    assert seen.waits and seen.count > 3


def test_two_steps_are_launched_while_the_device_is_busy() -> None:
    """The device's thread stands still, and the host goes on: it plans, builds, and launches a step and the next."""
    core = new_core(MODEL, async_scheduling=True, device="cpu", max_model_len=128)
    for i in range(3):
        params = SamplingParams(
            max_tokens=9, ignore_eos=True, temperature=0.7 * i, seed=i, logprobs=i, presence_penalty=0.5 * i
        )
        core.add(new_request(f"r{i}", [40 + i] * (3 + i), params))
    core.step()
    core._pipeline.close()  # what is in flight is computed
    gate = threading.Event()
    executor, scheduler = core._executor, core._scheduler
    assert isinstance(executor._device, CpuDevice)
    busy = executor._device.order(lambda: gate.wait(TIMEOUT_S))
    step = scheduler._steps[0]
    ahead = scheduler.plan_ahead()
    assert ahead is not None and len(step.sequences) == 3
    assert all(NOT_YET_DRAWN in line.token_ids for line in ahead.sequences)
    pending = executor.launch(ahead)
    assert not gate.is_set()
    gate.set()
    assert busy.result()
    assert len(pending.result().token_ids) == 3
    core.close()


def test_no_operation_of_a_sequence_that_comes_to_be_counted_asks_for_a_value() -> None:
    counted = CountedTokens(4, 50, torch.device("cpu"))
    params = SamplingParams(presence_penalty=1.0, logprob_token_ids=[3, 4])
    tasks = [SamplingTask(params, (0,), (1, 2), (1, 2, 2)), SamplingTask(params, (0,), (5,), (5,))]
    draws = prepare_draws(tasks, counted)
    assert draws.update is not None
    with Counting() as seen:
        draws.update.apply()
        torch.zeros(2, 50).index_select(0, draws.rows)
    assert seen.waits == [] and seen.count > 4
    assert counted.counts.counts[:2, :6].tolist() == [
        [0, IN_PROMPT, IN_PROMPT + 1, 0, 0, 0],
        [0, 0, 0, 0, 0, IN_PROMPT],
    ]


def test_no_operation_of_a_decode_asks_for_a_value() -> None:
    """From the tokens on the device to the logits, but for the kernels themselves."""
    size, width = 6, 4
    scratch = ScratchBlocks.behind(20, (2, 8), 4)

    def step(inputs: StepInputs) -> Tensor:
        return (inputs.token_ids + inputs.positions)[:, None] * torch.ones(5)

    drawn = torch.arange(10, 18)
    graphed = GraphedStep(
        step, CpuDevice(), drawn, (2, 8), num_groups=2, max_blocks=5, scratch=scratch, shows_progress=False
    )
    positions = torch.arange(size)
    built = BuiltInputs(
        columns=torch.stack([torch.full((size,), NOT_YET_DRAWN), positions, positions.flip(0), positions, positions]),
        block_tables=torch.zeros(2 * size, width, dtype=torch.int32),
        query_start=torch.arange(size + 1, dtype=torch.int32),
        context_lens=torch.arange(1, size + 1, dtype=torch.int32),
        logits_rows=None,
        max_query_len=1,
        has_unknown=True,
    )
    with Counting() as seen:
        logits = graphed(built)
    assert seen.waits == [] and seen.count > 10
    assert logits[:, 0].tolist() == [15 + 0, 14 + 1, 13 + 2, 12 + 3, 11 + 4, 10 + 5]
