"""The block manager that an engine's configuration and executor ask for."""

from __future__ import annotations

from paged_backend.config import EngineConfig
from paged_backend.engine.metrics import EngineMetrics
from paged_backend.executor.executor import Executor
from paged_backend.kv.block_life import BlockWatch
from paged_backend.kv.manager import KVCacheManager


def new_kv_manager(config: EngineConfig, executor: Executor, metrics: EngineMetrics) -> KVCacheManager:
    """An empty one over the executor's blocks.

    Args:
        metrics: what is told of the life of blocks, where that is asked for.
    """
    transfer, observability = executor.transfer, config.observability
    watch = None
    if observability.kv_cache_metrics:
        watch = BlockWatch(observability.kv_cache_metrics_sample, metrics.observe_block)
    disk = None if transfer is None else transfer.disk
    return KVCacheManager(
        executor.num_blocks,
        executor.block_size,
        config.cache.enable_prefix_caching,
        groups=executor.layer_groups,
        key=None if disk is None else disk.hash_key,
        num_host_slots=0 if transfer is None else transfer.num_slots,
        keeps_on_disk=disk is not None,
        watch=watch,
    )
