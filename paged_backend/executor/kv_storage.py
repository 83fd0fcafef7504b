"""The tensor that holds all blocks of the paged cache, and how large it may be."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from paged_backend.config import EngineConfig
from paged_backend.errors import ConfigError
from paged_backend.executor.kv_layout import KVLayout, plan_layout
from paged_backend.kernels.cache_layout import LayerCache, block_bytes
from paged_backend.kernels.interface import Kernels
from paged_backend.models.architecture import Architecture

_MIB = 2**20
_CPU = torch.device("cpu")


class KVStorage:
    """One tensor for the keys and values of every layer and block.

    Attributes:
        blocks: uint8 [lanes, 2 (keys, values), blocks, block_bytes].
        layers: each layer's part of it.
    """

    def __init__(
        self,
        architecture: Architecture,
        num_blocks: int,
        block_size: int,
        dtype: str,
        layout: KVLayout | None = None,
        *,
        token_major_keys: bool = False,
        device: torch.device = _CPU,
    ) -> None:
        """Takes the memory.

        Args:
            layout: where each layer has its place; None for one group of all of them.
            token_major_keys: how the kernels like keys to lie (`Kernels.token_major_keys`).
            device: where the memory is.

        Raises:
            ConfigError: the system does not give so much.
        """
        num_kv_heads, head_size = architecture.num_kv_heads, architecture.head_dim
        size = block_bytes(dtype, num_kv_heads, block_size, head_size)
        if layout is None:
            layout = plan_layout((0,) * architecture.num_layers, architecture.max_positions, block_size, 1)
        shape = (layout.num_lanes, 2, num_blocks, size)
        self.blocks: Tensor = _host_memory(shape) if device.type == "cpu" else _device_memory(shape, device)
        self.layers: Sequence[LayerCache] = tuple(
            LayerCache(
                keys=self.blocks[lane, 0],
                values=self.blocks[lane, 1],
                dtype=dtype,
                num_kv_heads=num_kv_heads,
                block_size=block_size,
                head_size=head_size,
                group=group,
                token_major_keys=token_major_keys,
            )
            for group, lane in layout.places
        )


def _host_memory(shape: tuple[int, ...]) -> Tensor:
    # The system gives zeroed pages as they are first written, so an idle pool costs no memory; torch.zeros would
    # write them all.
    num_bytes = math.prod(shape)
    try:
        pages = lazy_pages(num_bytes)
    except OSError as error:
        raise ConfigError(
            f"The KV cache's {shape[2]} blocks need {num_bytes / _MIB:.0f} MiB, which the system does not give "
            f"({error.strerror}): lower num_gpu_blocks_override, max_num_seqs or max_model_len."
        ) from error
    return torch.frombuffer(pages, dtype=torch.uint8).view(shape)


def _device_memory(shape: tuple[int, ...], device: torch.device) -> Tensor:
    try:
        return torch.zeros(shape, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"The KV cache's {shape[2]} blocks need {math.prod(shape) / _MIB:.0f} MiB, which {device} does not have "
            "free: lower gpu_memory_utilization, kv_cache_memory_bytes or num_gpu_blocks_override."
        ) from error


def lazy_pages(num_bytes: int) -> mmap.mmap:
    """Zeroed memory that the system gives as it is first written, in large pages where it can: blocks lie anywhere, and
    looking up small pages costs decodes up to a third of their speed (docs/lab-log.md)."""
    private = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
    pages = mmap.mmap(-1, num_bytes, flags=private) if private else mmap.mmap(-1, num_bytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


def cache_dtype(config: EngineConfig, kernels: Kernels) -> str:
    """What keys and values are held in.

    Raises:
        ConfigError: the kernels have none of the dtype that is asked for.
    """
    asked = config.cache.kv_cache_dtype
    if asked == "auto":
        return kernels.cache_dtypes[0]
    if asked not in kernels.cache_dtypes:
        raise ConfigError(
            f"kv_cache_dtype {asked} is not served by the {kernels.report['paged_attention'].implementation} kernels: "
            f"choose one of {', '.join(kernels.cache_dtypes)}, or kernel_backend reference, which serves all."
        )
    return asked


def num_cache_blocks(
    config: EngineConfig,
    architecture: Architecture,
    max_model_len: int,
    dtype: str,
    layout: KVLayout,
    free_bytes: int | None = None,
) -> int:
    """How many blocks the pool gets: as many as asked for, or as the memory bound allows and can be used.

    Args:
        free_bytes: of the device's memory; None asks how much of the host's is free.

    Raises:
        ConfigError: that is not enough for one sequence of max_model_len tokens.
    """
    cache, block_size = config.cache, config.cache.block_size
    layer_bytes = block_bytes(dtype, architecture.num_kv_heads, block_size, architecture.head_dim)
    bytes_per_block = 2 * layout.num_lanes * layer_bytes
    needed = layout.most_blocks(max_model_len)
    if cache.num_gpu_blocks_override is not None:
        if cache.num_gpu_blocks_override < needed:
            raise ConfigError(
                f"num_gpu_blocks_override {cache.num_gpu_blocks_override} cannot hold one sequence of "
                f"max_model_len {max_model_len}: give at least {needed} blocks of {block_size} tokens, or "
                "lower max_model_len."
            )
        return cache.num_gpu_blocks_override
    if cache.kv_cache_memory_bytes is not None:
        bound, name = cache.kv_cache_memory_bytes, "kv_cache_memory_bytes"
    else:
        if free_bytes is None:
            free_bytes = free_memory_bytes() // config.executor.tensor_parallel_size  # which is all ranks' together
        bound = int(free_bytes * cache.gpu_memory_utilization)
        name = "gpu_memory_utilization of free memory"
    # What falls out of windows may stay for prefixes to find.
    filled = len(layout.groups) * -(-max_model_len // block_size) * config.scheduler.max_num_seqs
    num_blocks = min(bound // bytes_per_block, filled)
    if num_blocks < needed:
        has, wants = bound / _MIB, needed * bytes_per_block / _MIB
        raise ConfigError(
            f"{name} gives the KV cache {has:.2f} MiB, room for {num_blocks} blocks of {block_size} tokens, but one "
            f"sequence of max_model_len {max_model_len} needs {needed} blocks ({wants:.2f} MiB): give more "
            "(gpu_memory_utilization, kv_cache_memory_bytes), lower max_model_len (or, on a GPU, max_num_seqs and "
            "max_num_batched_tokens, whose steps need memory, too), or choose a smaller kv_cache_dtype."
        )
    return num_blocks


def free_memory_bytes() -> int:
    """Bytes of host memory that this process may still take: the machine's, or its container's if less.

    Raises:
        ConfigError: the system does not tell.
    """
    bounds = [bound for bound in (_machine_free_bytes(), _container_free_bytes()) if bound is not None]
    if not bounds:
        raise ConfigError("This system does not tell how much memory is free: set kv_cache_memory_bytes.")
    return max(min(bounds), 0)


def _machine_free_bytes() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    # Elsewhere (macOS) only the total is told; half of it is a guess that the utilization then halves again.
    for name, share in (("SC_AVPHYS_PAGES", 1.0), ("SC_PHYS_PAGES", 0.5)):
        try:
            return int(os.sysconf(name) * os.sysconf("SC_PAGE_SIZE") * share)
        except (AttributeError, OSError, ValueError):
            continue
    return None


def _container_free_bytes() -> int | None:
    """What the control group (version 2, then 1) leaves; None where it sets no bound.

    Files that were read and can be dropped again (the checkpoint just loaded among them) count as free, as in
    Kubernetes' working set.
    """
    root = Path("/sys/fs/cgroup")
    for folder, limit, usage, dropped in (
        (root, "memory.max", "memory.current", "inactive_file"),
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
            used = int((folder / usage).read_text(encoding="ascii")) - int(stat[dropped])
            return int((folder / limit).read_text(encoding="ascii")) - used
        except (OSError, ValueError, KeyError):
            continue
    return None
