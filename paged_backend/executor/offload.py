"""Opens the tiers below the pool that a configuration asks for."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from paged_backend.config import EngineConfig
from paged_backend.errors import ConfigError
from paged_backend.executor.block_file import BlockFileError
from paged_backend.executor.cache_folder import open_block_file
from paged_backend.executor.device import Device
from paged_backend.executor.disk_tier import DiskTier
from paged_backend.executor.kv_layout import KVLayout
from paged_backend.executor.kv_storage import KVStorage
from paged_backend.executor.kv_transfer import KVTransfer
from paged_backend.kernels.interface import Kernels, OperationChoice
from paged_backend.kv.prefix_index import pack_tokens
from paged_backend.models.fingerprint import checkpoint_fingerprint
from paged_backend.models.loader import LoadedModel
from paged_backend.version import __version__

logger = logging.getLogger(__name__)

_GIB = 2**30


def open_transfer(
    config: EngineConfig,
    model: LoadedModel,
    storage: KVStorage,
    layout: KVLayout,
    kernels: Kernels,
    device: Device,
) -> KVTransfer | None:
    """Host memory for blocks, and the tier on disk; None where the configuration has neither.

    A folder that cannot be used is no reason not to serve: it is said why, and the engine runs without it.

    Args:
        layout: which layers a block holds.
        kernels: what computes the blocks, and moves them on the device.

    Raises:
        ConfigError: kv_offloading_size holds no block, or more than the system gives.
    """
    cache = config.cache
    lanes, two, _, layer_bytes = storage.blocks.shape
    payload_bytes = lanes * two * layer_bytes
    block_bytes = payload_bytes * model.shard.size  # of all ranks
    if cache.kv_offloading_size is not None:
        num_slots = int(cache.kv_offloading_size * _GIB) // block_bytes
    elif cache.kv_offloading_dir is not None:
        num_slots = -(-model.max_model_len // cache.block_size) * len(layout.groups)
    else:
        return None
    if num_slots < 1:
        raise ConfigError(
            f"kv_offloading_size {cache.kv_offloading_size} holds no block of {block_bytes} bytes: give at least "
            f"{block_bytes / _GIB:.9f}."
        )
    transfer = KVTransfer(storage, num_slots, kernels, device)
    if cache.kv_offloading_dir is not None:
        fingerprint = _fingerprint(config, model, storage, layout, kernels.report)
        transfer.disk = _open_disk(Path(cache.kv_offloading_dir), fingerprint, config, payload_bytes)
    return transfer


def _open_disk(folder: Path, fingerprint: bytes, config: EngineConfig, payload_bytes: int) -> DiskTier | None:
    try:
        file, hash_key = open_block_file(
            folder.expanduser(),
            fingerprint,
            tokens_bytes=len(pack_tokens([0])) * config.cache.block_size,
            payload_bytes=payload_bytes,
            max_bytes=int(config.cache.kv_offloading_disk_size * _GIB),
        )
    except (BlockFileError, OSError) as error:
        logger.warning("kv_offloading_dir %s is not used: %s", folder, error)
        return None
    return DiskTier(file, hash_key, payload_bytes)


def _fingerprint(
    config: EngineConfig,
    model: LoadedModel,
    storage: KVStorage,
    layout: KVLayout,
    report: Mapping[str, OperationChoice],
) -> bytes:
    """32 bytes that stand for all that a block's content depends on but its tokens."""
    cache = storage.layers[0]
    facts = {
        "checkpoint": checkpoint_fingerprint(model.folder, config.model.load_format).hex(),
        "architecture": repr(model.architecture),
        "dtype": config.model.dtype,
        "quantization": config.model.quantization,
        "kv_cache_dtype": cache.dtype,
        "token_major_keys": cache.token_major_keys,
        "block_size": config.cache.block_size,
        "layout": [layout.num_lanes, layout.places],
        "kernels": {name: tuple(choice) for name, choice in sorted(report.items())},
        "versions": [__version__, torch.__version__],
    }
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=32).digest()
