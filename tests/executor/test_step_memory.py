"""A device's memory is divided after a look at what a step takes; on a stand-in that has as much as it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from paged_backend.errors import ConfigError
from paged_backend.executor import executor as executor_module
from paged_backend.executor import step_memory
from paged_backend.executor.device import CpuDevice
from paged_backend.executor.executor import Executor
from paged_backend.executor.largest_step import largest_step, num_blocks_of, smaller_steps
from paged_backend.executor.step_memory import enough_memory
from paged_backend.kernels.cpu.kernels import CpuKernels
from paged_backend.sampling_params import SamplingParams
from tests.engine_driver import new_core, run_core

MODEL = Path(__file__).resolve().parents[2] / "model_store" / "paged-tiny"
MIB = 2**20


class SmallDevice(CpuDevice):
    """A device that records, has so much memory, and counts.

    Attributes:
        total_bytes: free while a step is computed.
        sizes: rows of what was recorded, in order.
    """

    records = True
    total_bytes = 64 * MIB
    fails_to: str = ""

    def __init__(self, *, overlaps: bool = False) -> None:
        super().__init__(overlaps=overlaps)
        self.sizes: list[int] = []
        self.num_profiled = self.num_replayed = 0

    def free_bytes_after(self, *works: Callable[[], object]) -> int:
        self.num_profiled += 1
        if self.fails_to == "compute":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore words.")
        for work in works:
            work()
        return self.total_bytes

    def capture(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        if self.fails_to == "record":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.sizes.append(work().shape[0])
        replay = super().capture(work)

        def counted() -> Tensor:
            self.num_replayed += 1
            return replay()

        return counted


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> type[SmallDevice]:
    """Engines get a device of this class."""

    class Small(SmallDevice):
        pass

    monkeypatch.setattr(executor_module, "open_device", lambda where, *, overlaps: Small(overlaps=overlaps))
    return Small


REQUESTS = [
    (
        [5 + i, 40, 41 + i, 300 + 7 * i] * (1 + i % 3),
        SamplingParams(max_tokens=4 + i, temperature=0.9, seed=i, n=1 + i % 2),
    )
    for i in range(7)
]
SIZES: dict[str, Any] = {"max_num_seqs": 12, "max_model_len": 64, "max_num_batched_tokens": 64, "device": "cpu"}


@pytest.mark.parametrize("overlaps", [False, True])
def test_recorded_decodes_give_the_same_tokens(small: type[SmallDevice], overlaps: bool) -> None:
    found = []
    for enforce_eager in (True, False):
        core = new_core(MODEL, async_scheduling=overlaps, enforce_eager=enforce_eager, **SIZES)
        outputs = run_core(core, REQUESTS, steps_between=2)
        found.append([[sample.token_ids for sample in output.outputs] for output in outputs])
        device = core._executor._device
        assert isinstance(device, SmallDevice)
        assert device.sizes == ([] if enforce_eager else [12, 8, 4, 2, 1])
        assert (device.num_replayed > 10) == (not enforce_eager)
        core.close()
    assert found[0] == found[1]


def test_kernels_that_look_at_lengths_are_not_recorded(
    small: type[SmallDevice], caplog: pytest.LogCaptureFixture
) -> None:
    core = new_core(MODEL, kernel_backend="reference", **SIZES)
    assert core._executor._device.sizes == []  # type: ignore[attr-defined]
    assert "paged_attention" in caplog.text
    core.close()


def test_the_pool_gets_its_part_of_what_a_step_leaves(small: type[SmallDevice]) -> None:
    args = {**SIZES, "max_num_seqs": 64, "max_model_len": 512, "gpu_memory_utilization": 0.5}
    core = new_core(MODEL, enforce_eager=True, **args)
    executor = core._executor
    given_back = num_blocks_of(largest_step(64, 64, 512, 1, executor.block_size))
    block_bytes = executor._runner._storage.blocks.nbytes // executor.num_blocks  # type: ignore[union-attr]
    wanted = int((SmallDevice.total_bytes + given_back * block_bytes) * 0.5) // block_bytes
    assert executor.num_blocks == wanted < 64 * 512 // executor.block_size
    assert isinstance(executor._device, SmallDevice) and executor._device.num_profiled == 1
    core.close()


def test_scratch_blocks_are_behind_the_pool(small: type[SmallDevice]) -> None:
    core = new_core(MODEL, num_gpu_blocks_override=9, cudagraph_capture_sizes=[3, 1, 12], **SIZES)
    executor = core._executor
    assert executor.num_blocks == 9 and core._kv.num_blocks == 9
    assert executor._runner._storage.blocks.shape[2] == 10  # type: ignore[union-attr]
    assert executor._device.sizes == [12, 3, 1]  # type: ignore[attr-defined]
    core.close()


@pytest.mark.parametrize(
    ("fails_to", "words"),
    [
        ("compute", "to compute a step .*20.00 GiB.*lower max_num_batched_tokens or max_num_seqs"),
        ("record", "to record decode steps .*gpu_memory_utilization.*enforce_eager"),
    ],
)
def test_too_little_memory_says_what_to_lower(small: type[SmallDevice], fails_to: str, words: str) -> None:
    small.fails_to = fails_to
    with pytest.raises(ConfigError, match=words):
        new_core(MODEL, **SIZES)


def test_too_little_for_one_sequence(small: type[SmallDevice]) -> None:
    small.total_bytes = 0
    with pytest.raises(ConfigError, match=r"gpu_memory_utilization.*max_model_len.*max_num_seqs.*kv_cache_dtype"):
        new_core(MODEL, **{**SIZES, "max_model_len": 512, "max_num_seqs": 2, "max_num_batched_tokens": 2})


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="else"), enough_memory("think", "think less"):
        raise RuntimeError("something else")


def test_the_largest_step() -> None:
    for max_num_seqs, num_tokens, max_model_len, num_groups in ((3, 10, 64, 1), (4, 100, 16, 2), (1, 7, 7, 3)):
        plan = largest_step(max_num_seqs, num_tokens, max_model_len, num_groups, 4)
        lengths = [len(line.token_ids) for line in plan.sequences]
        assert len(lengths) == max_num_seqs and max(lengths) - min(lengths) <= 1
        assert sum(lengths) == min(num_tokens, max_num_seqs * max_model_len)
        blocks = [block for line in plan.sequences for block in line.block_table]
        assert sorted(blocks) == list(range(num_blocks_of(plan)))
        assert all(len(line.block_table) == -(-len(line.token_ids) // 4) * num_groups for line in plan.sequences)


def test_smaller_steps() -> None:
    """Of each order of magnitude, with no more sequences and blocks than the largest has; and one at the far end."""
    for sizes in ((3, 10, 64, 1, 4), (4, 100, 16, 2, 1), (1, 7, 7, 3, 4), (64, 64, 512, 1, 16)):
        far, *plans = smaller_steps(*sizes)
        max_num_seqs, num_tokens, max_model_len, num_groups, block_size = sizes
        (line,) = far.sequences
        assert line.num_computed_tokens == max_model_len - 1
        assert line.block_table == [0] * (-(-max_model_len // block_size) * num_groups)
        assert [plan.num_tokens for plan in plans] == [2**n for n in range(len(plans))]
        assert num_tokens / 2 <= plans[-1].num_tokens < num_tokens
        assert max(len(plan.sequences) for plan in plans) <= max_num_seqs
        assert max(map(num_blocks_of, plans)) <= num_blocks_of(largest_step(*sizes))


def test_a_start_warms_kernels_up(small: type[SmallDevice], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(CpuKernels, "warm_up", lambda kernels, vocab_size: asked.append(vocab_size))
    core = new_core(MODEL, **SIZES)
    assert asked == [json.loads((MODEL / "config.json").read_text())["vocab_size"]]
    core.close()


def test_the_cpu_is_not_tried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory is the host's: a start computes nothing."""
    monkeypatch.setattr(step_memory, "largest_step", lambda *_: pytest.fail("a step was computed"))
    core = new_core(MODEL, **SIZES)
    executor: Executor = core._executor
    assert not executor._device.records
    core.close()
