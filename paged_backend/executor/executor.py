"""What the engine sees of the machine: a loaded model that runs plans."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from paged_backend.config import EngineConfig
from paged_backend.executor.cuda_device import CudaDevice
from paged_backend.executor.device import CpuDevice, Device
from paged_backend.executor.kv_layout import plan_layout
from paged_backend.executor.kv_storage import cache_dtype
from paged_backend.executor.kv_transfer import KVTransfer
from paged_backend.executor.leader import start_ranks
from paged_backend.executor.offload import open_transfer
from paged_backend.executor.pending import PendingStep
from paged_backend.executor.ranks import Ranks
from paged_backend.executor.runner import Runner
from paged_backend.executor.step_memory import StepMemory, enough_memory
from paged_backend.executor.step_work import StepWork
from paged_backend.kernels.cores import usable_cores
from paged_backend.kernels.devices import select_device
from paged_backend.kernels.interface import OperationChoice
from paged_backend.kernels.reference.kernels import ReferenceKernels
from paged_backend.kernels.registry import select_kernels
from paged_backend.kv.layer_group import LayerGroup
from paged_backend.models.architecture import Architecture
from paged_backend.models.loader import activation_dtype, load_model
from paged_backend.scheduler.plan import StepPlan, StepResult


class Executor:
    """A model and its paged cache on this machine's CPU or GPU, or one rank's part of them. For one thread at a time.

    Attributes:
        max_model_len: tokens of prompt and output at most.
        vocab_size: token ids are 0 .. vocab_size - 1; a tokenizer may know fewer.
        num_blocks, block_size: the pool of the KV cache; block ids are 0 .. num_blocks - 1.
        kv_cache_dtype: what keys and values are held in.
        layer_groups: the groups of layers that have blocks of their own for a sequence.
        eos_token_ids: what ends a text, by the model's own files.
        default_sampling_params: sampling parameters by name, for requests that leave them out.
        model_folder: where these are.
        kernel_report: for each operation, what computes it and why.
        num_threads: CPU threads that a step is computed on.
        transfer: the tiers below the pool; None without any.
        async_scheduling: whether a step may be launched before the last one's result is read.
    """

    def __init__(self, config: EngineConfig, ranks: Ranks | None = None) -> None:
        """Loads the model and takes the cache's memory, and starts the other ranks, where there are some.

        Sets the number of torch's CPU threads, which is the process's: to one where the kernels have their own.

        Args:
            ranks: of another rank than the first, how it hears from that one.

        Raises:
            ModelLoadError: the model cannot be used.
            ConfigError: the configuration asks for more than the model or the memory gives.
            EngineUnavailableError: another rank ended while it was loading.
        """
        self._ranks = start_ranks(config) if ranks is None else ranks
        with self._ranks.loading():
            self._load(config)

    def _load(self, config: EngineConfig) -> None:
        shard = self._ranks.shard
        num_threads = config.executor.num_threads or max(1, usable_cores() // shard.size)
        where = select_device(config.executor.device, shard.rank, shard.size)
        kernels = select_kernels(
            config.executor.kernel_backend,
            where,
            num_threads=num_threads,
            dtype=activation_dtype(config.model, where),
            batch_invariant=config.executor.batch_invariant,
        )
        # torch's threads wait actively for each other: beside the kernels' own they would only be in the way.
        torch.set_num_threads(num_threads if isinstance(kernels, ReferenceKernels) else 1)
        self.kv_cache_dtype = cache_dtype(config, kernels)
        overlaps = config.scheduler.async_scheduling
        if overlaps is None:
            overlaps = where.type != "cpu"
        self._device: Device = open_device(where, overlaps=overlaps)
        self.async_scheduling: bool = self._device.overlaps
        with enough_memory("load the model's weights", "choose a smaller dtype or quantization, or a smaller model"):
            model = load_model(config.model, kernels, num_threads=num_threads, device=where, shard=shard)
        self._ranks.connect(where)
        self.max_model_len: int = model.max_model_len
        self.architecture: Architecture = model.architecture
        self.vocab_size: int = model.architecture.vocab_size
        self.eos_token_ids: frozenset[int] = model.eos_token_ids
        self.default_sampling_params: Mapping[str, float | int] = model.default_sampling_params
        self.model_folder: Path = model.folder
        self.block_size: int = config.cache.block_size
        layout = plan_layout(
            model.architecture.sliding_windows,
            model.max_model_len,
            self.block_size,
            config.scheduler.max_num_batched_tokens,
        )
        self.layer_groups: tuple[LayerGroup, ...] = layout.groups
        self.kernel_report: Mapping[str, OperationChoice] = kernels.report
        self.num_threads: int = num_threads
        memory = StepMemory(config, model, kernels, layout, self.kv_cache_dtype, self._device, self._ranks)
        self.num_blocks: int = memory.num_blocks
        self.transfer: KVTransfer | None = open_transfer(config, model, memory.storage, layout, kernels)
        self._runner: Runner | None = memory.runner(self.transfer)
        self._ranks.wait_ready()

    def close(self) -> None:
        """Gives up the model and the cache, and ends the other ranks. `run` must not be called any more."""
        self._ranks.close()
        self._runner = None
        self._device.close()
        if self.transfer is not None:
            self.transfer.close()
            self.transfer = None

    def run(self, plan: StepPlan) -> StepResult:
        """Computes one step. What could not be drawn is NOT_DRAWN.

        Raises:
            EngineUnavailableError: a rank is lost, and with it the model.
        """
        return self.launch(plan).result()

    def follow(self, work: StepWork) -> None:
        """Another rank than the first: its part of a step."""
        assert self._runner is not None, "follow after close"
        self._runner.follow(work)

    def on_lost(self, call: Callable[[str], None]) -> None:
        """Has this called, from any thread, with the reason, when nothing can be computed any more."""
        self._ranks.on_lost(call)

    def launch(self, plan: StepPlan) -> PendingStep:
        """Begins a step, behind those that were launched before; where `async_scheduling` is off, computes it.

        A plan is looked at before this returns, but for a step with a draw that needs the host: see `Runner`.
        """
        assert self._runner is not None, "launch after close"
        return self._runner.launch(plan)


def open_device(torch_device: torch.device, *, overlaps: bool) -> Device:
    """What computes where tensors are."""
    if torch_device.type == "cpu":
        return CpuDevice(overlaps=overlaps)
    return CudaDevice(torch_device, overlaps=overlaps)
