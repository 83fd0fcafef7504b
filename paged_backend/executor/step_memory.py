"""What steps need memory for beside the weights: the cache, recorded decodes, and what a step leaves behind."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from tqdm.auto import tqdm

from paged_backend.config import EngineConfig
from paged_backend.errors import ConfigError
from paged_backend.executor.batch import BuiltInputs
from paged_backend.executor.cuda_graph import GraphedStep, ScratchBlocks, default_capture_sizes
from paged_backend.executor.device import Device
from paged_backend.executor.kv_layout import KVLayout
from paged_backend.executor.kv_storage import KVStorage, num_cache_blocks
from paged_backend.executor.kv_transfer import KVTransfer
from paged_backend.executor.largest_step import largest_step, num_blocks_of, smaller_steps
from paged_backend.executor.ranks import Ranks
from paged_backend.executor.recorded_draws import RecordedDraws
from paged_backend.executor.runner import Runner
from paged_backend.kernels.interface import OPERATIONS, Kernels, StepInputs
from paged_backend.models.loader import LoadedModel
from paged_backend.sampling.counted_tokens import CountedTokens
from paged_backend.structured.token_masks import TokenMasks

logger = logging.getLogger(__name__)

_RECORDED = tuple(name for name in OPERATIONS if name not in ("copy_blocks", "swap_blocks", "sample"))
"""The operations of a decoder's step."""


@contextmanager
def enough_memory(purpose: str, remedy: str) -> Iterator[None]:
    """Says what to do about a device that runs out of memory.

    Raises:
        ConfigError: it does.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"The device has too little free memory to {purpose} ({reason}): {remedy}.") from error


def eager(step: Callable[[StepInputs], Tensor], drawn: Tensor) -> Callable[[BuiltInputs], Tensor]:
    """A compiled step (`Kernels.compile`), to be called with what was built for it.

    Args:
        drawn: see `BuiltInputs.with_tokens`.
    """
    return lambda built: step(built.with_tokens(drawn))


class StepMemory:
    """Divides a device's memory: a step as large as any is computed, to see what it takes, then the cache gets its part
    of the rest, and decode steps are recorded in what is left.

    Smaller steps are computed before, and kernels warmed up: serving must not meet one that is not compiled yet.

    Attributes:
        num_blocks: of the pool.
        storage: the pool, and behind it blocks for rows of recorded steps that are nobody's.
    """

    def __init__(
        self,
        config: EngineConfig,
        model: LoadedModel,
        kernels: Kernels,
        layout: KVLayout,
        cache_dtype: str,
        device: Device,
        ranks: Ranks,
    ) -> None:
        """
        Args:
            ranks: who do all of this at the same time.

        Raises:
            ConfigError: there is too little, and what to lower.
        """
        self._config = config
        self._model = model
        self._kernels = kernels
        self._layout = layout
        self._cache_dtype = cache_dtype
        self._device = device
        self._ranks = ranks
        vocab_size, max_num_seqs = model.architecture.vocab_size, config.scheduler.max_num_seqs
        self._given_back_bytes = 0  # of the caches that such steps were computed on
        self._masks = TokenMasks(vocab_size, max_num_seqs)
        self._sizes = _sizes_to_record(config, kernels) if device.records else ()
        works = [lambda: self._compute(max_num_seqs, config.scheduler.max_num_batched_tokens, warms_up=True)]
        if self._sizes:  # recordings keep memory of their own
            works.append(lambda: self._compute(self._sizes[-1], self._sizes[-1]))
        with enough_memory("compute a step", "lower max_num_batched_tokens or max_num_seqs"):
            draws_unseen = device.overlaps and model.shard.rank == 0
            self._counted = CountedTokens(max_num_seqs, vocab_size, device.torch_device) if draws_unseen else None
            free_bytes = device.free_bytes_after(*works)
        if free_bytes is not None:
            free_bytes += self._given_back_bytes
        local, max_model_len = model.local_architecture, model.max_model_len
        self.num_blocks = ranks.agree(num_cache_blocks(config, local, max_model_len, cache_dtype, layout, free_bytes))
        self._scratch = ScratchBlocks.behind(self.num_blocks, self._sizes, config.cache.block_size)
        self.storage = self._storage(self.num_blocks + (self._scratch.count if self._sizes else 0))

    def runner(self, transfer: KVTransfer | None) -> Runner:
        """What computes steps; records decodes first, where the device does so.

        Raises:
            ConfigError: there is too little memory for that.
        """
        step = self._compiled(self.storage)
        drawn, sampler = self._no_tokens(), None
        on_built = eager(step, drawn)
        if self._sizes:
            with enough_memory(
                "record decode steps",
                "lower gpu_memory_utilization, max_num_seqs or cudagraph_capture_sizes, or set enforce_eager",
            ):
                if self._counted is not None:
                    sampler = self._kernels.recorded_sampler(len(drawn), self._model.architecture.vocab_size)
                    drawn = drawn if sampler is None else sampler.token_ids
                on_built = GraphedStep(
                    step,
                    self._device,
                    drawn,
                    self._sizes,
                    num_groups=len(self._layout.groups),
                    max_blocks=-(-self._model.max_model_len // self._config.cache.block_size),
                    scratch=self._scratch,
                    sampler=sampler,
                )
        draws = None if sampler is None else RecordedDraws(sampler, self._sizes[-1])
        return self._runner(on_built, drawn, self.storage, transfer, draws, self._ranks)

    def _no_tokens(self) -> Tensor:
        """Room for a step's tokens."""
        num_tokens = self._config.scheduler.max_num_seqs
        return torch.zeros(num_tokens, dtype=torch.int64, device=self._device.torch_device)

    def _storage(self, num_blocks: int) -> KVStorage:
        return KVStorage(
            self._model.local_architecture,
            num_blocks,
            self._config.cache.block_size,
            self._cache_dtype,
            self._layout,
            token_major_keys=self._kernels.token_major_keys,
            device=self._device.torch_device,
        )

    def _compiled(self, storage: KVStorage) -> Callable[[StepInputs], Tensor]:
        decoder, shard, vocab_size = self._model.decoder, self._model.shard, self._model.architecture.vocab_size
        step = self._kernels.compile(lambda kernels, inputs: decoder(kernels, inputs, storage.layers))
        if shard.size == 1:
            return step
        return lambda inputs: step(shard.own_tokens(inputs, vocab_size))[:, :vocab_size]

    def _runner(
        self,
        step: Callable[[BuiltInputs], Tensor],
        drawn: Tensor,
        storage: KVStorage,
        transfer: KVTransfer | None,
        draws: RecordedDraws | None,
        ranks: Ranks,
    ) -> Runner:
        num_groups, block_size = len(self._layout.groups), self._config.cache.block_size
        return Runner(
            step,
            drawn,
            storage,
            self._kernels,
            block_size,
            num_groups,
            transfer=transfer,
            recorded=draws,
            masks=self._masks,
            counted=self._counted,
            device=self._device,
            ranks=ranks,
        )

    def _compute(self, num_seqs: int, num_tokens: int, *, warms_up: bool = False) -> None:
        """A step of so many sequences and tokens.

        Args:
            warms_up: compute smaller ones before, and warm the kernels up.
        """
        sizes = (
            num_seqs,
            num_tokens,
            self._model.max_model_len,
            len(self._layout.groups),
            self._config.cache.block_size,
        )
        largest = largest_step(*sizes)
        storage = self._storage(num_blocks_of(largest))
        self._given_back_bytes += storage.blocks.nbytes
        drawn = self._no_tokens()
        # Every rank does this by itself: none has to be told.
        runner = self._runner(eager(self._compiled(storage), drawn), drawn, storage, None, None, Ranks())
        if not warms_up:
            runner.launch(largest).result()
            return
        # What a compiler has not seen yet takes most of the time.
        with tqdm(desc="Warming up", unit="step") as progress:
            self._kernels.warm_up(self._model.architecture.vocab_size)
            for plan in (*smaller_steps(*sizes), largest):
                runner.launch(plan).result()
                progress.update()


def _sizes_to_record(config: EngineConfig, kernels: Kernels) -> tuple[int, ...]:
    if config.executor.enforce_eager:
        return ()
    looking = [name for name in _RECORDED if kernels.report[name].implementation == "reference"]
    if looking:
        logger.warning(
            "decode steps are not recorded, as plain torch computes %s, which looks at lengths on the host",
            ", ".join(looking),
        )
        return ()
    max_num_seqs = config.scheduler.max_num_seqs
    asked = tuple(size for size in config.executor.cudagraph_capture_sizes if size <= max_num_seqs)
    return asked or default_capture_sizes(max_num_seqs)
