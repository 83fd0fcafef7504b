"""What the engine sees of the machine: a loaded model that runs plans."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from paged_backend.config import EngineConfig
from paged_backend.executor.kv_layout import plan_layout
from paged_backend.executor.kv_storage import KVStorage, cache_dtype, num_cache_blocks
from paged_backend.executor.kv_transfer import KVTransfer
from paged_backend.executor.leader import Leader, start_ranks
from paged_backend.executor.offload import open_transfer
from paged_backend.executor.ranks import Ranks
from paged_backend.executor.runner import Runner
from paged_backend.executor.step_work import StepWork
from paged_backend.kernels.cores import usable_cores
from paged_backend.kernels.devices import select_device
from paged_backend.kernels.interface import OperationChoice
from paged_backend.kernels.reference.kernels import ReferenceKernels
from paged_backend.kernels.registry import select_kernels
from paged_backend.kv.layer_group import LayerGroup
from paged_backend.models.architecture import Architecture
from paged_backend.models.loader import load_model
from paged_backend.scheduler.plan import StepPlan, StepResult
from paged_backend.structured.token_masks import TokenMasks


class Executor:
    """A model and its paged cache, or one rank's part of them. `run` is for one thread at a time.

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
        try:
            self._load(config)
        except BaseException:
            self._ranks.close()
            raise

    def _load(self, config: EngineConfig) -> None:
        shard = self._ranks.shard
        num_threads = config.executor.num_threads or max(1, usable_cores() // shard.size)
        device = select_device(config.executor.device, shard.rank, shard.size)
        kernels = select_kernels(
            config.executor.kernel_backend,
            device,
            num_threads=num_threads,
            batch_invariant=config.executor.batch_invariant,
        )
        # torch's threads wait actively for each other: beside the kernels' own they would only be in the way.
        torch.set_num_threads(num_threads if isinstance(kernels, ReferenceKernels) else 1)
        dtype = self.kv_cache_dtype = cache_dtype(config, kernels)
        model = load_model(config.model, kernels, num_threads=num_threads, shard=shard)
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
        local = model.local_architecture
        self.num_blocks: int = self._ranks.agree(num_cache_blocks(config, local, model.max_model_len, dtype, layout))
        self.kernel_report: Mapping[str, OperationChoice] = kernels.report
        self.num_threads: int = num_threads
        storage = KVStorage(
            local,
            self.num_blocks,
            self.block_size,
            dtype,
            layout,
            token_major_keys=kernels.token_major_keys,
        )
        self.transfer: KVTransfer | None = open_transfer(config, model, storage, layout, kernels.report)
        self._ranks.connect(device)
        self._runner: Runner | None = Runner(
            model.decoder,
            storage,
            kernels,
            self.block_size,
            len(layout.groups),
            self.transfer,
            masks=TokenMasks(self.vocab_size, config.scheduler.max_num_seqs),
            ranks=self._ranks,
            vocab_size=self.vocab_size,
        )

    def close(self) -> None:
        """Gives up the model and the cache, and ends the other ranks. `run` must not be called any more."""
        self._ranks.close()
        if self.transfer is not None:
            self.transfer.close()
            self.transfer = None
        self._runner = None

    def run(self, plan: StepPlan) -> StepResult:
        """Computes one step. What could not be drawn is NOT_DRAWN.

        Raises:
            EngineUnavailableError: a rank is lost, and with it the model.
        """
        assert self._runner is not None, "run after close"
        return self._runner.run(plan)

    def follow(self, work: StepWork) -> None:
        """Another rank than the first: its part of a step."""
        assert self._runner is not None, "follow after close"
        self._runner.follow(work)

    def on_lost(self, call: Callable[[], None]) -> None:
        """Has this called, from any thread, when nothing can be computed any more."""
        if isinstance(self._ranks, Leader):
            self._ranks.on_lost(call)
