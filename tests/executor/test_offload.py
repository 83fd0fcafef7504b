"""What a configuration's tiers become, and what a folder that cannot be used does: nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from paged_backend.config import EngineConfig
from paged_backend.errors import ConfigError
from paged_backend.executor.executor import Executor
from paged_backend.kernels.reference.kernels import ReferenceKernels
from paged_backend.kv.host_tier import Transfers
from paged_backend.models.fingerprint import checkpoint_fingerprint
from tests.tiny_models import make_tiny_model

BLOCK_SIZE = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("llama"))


def new_executor(folder: Path, **arguments: Any) -> Executor:
    defaults = {"model": str(folder), "block_size": BLOCK_SIZE, "max_num_seqs": 4, "num_threads": 1}
    return Executor(EngineConfig.from_args({**defaults, **arguments}))


def test_sizes(folder: Path, tmp_path: Path) -> None:
    assert new_executor(folder).transfer is None
    block_bytes = 3 * 2 * 2 * 16 * BLOCK_SIZE * 4
    sized = new_executor(folder, kv_offloading_size=(10 * block_bytes + 1) / 2**30).transfer
    assert sized is not None and sized.num_slots == 10 and sized.disk is None
    derived = new_executor(folder, kv_offloading_dir=str(tmp_path / "kv"), max_model_len=50)
    assert derived.transfer is not None and derived.transfer.num_slots == 13
    derived.close()
    with pytest.raises(ConfigError, match=r"kv_offloading_size .* holds no block"):
        new_executor(folder, kv_offloading_size=(block_bytes - 1) / 2**30)
    with pytest.raises(ConfigError, match="kv_offloading_size needs"):
        new_executor(folder, kv_offloading_size=2**19)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kv_offloading_size": 0}, "kv_offloading_size must be a number of GiB above 0"),
        ({"kv_offloading_size": True}, "kv_offloading_size must be"),
        ({"kv_offloading_disk_size": -1.0}, "kv_offloading_disk_size must be"),
        ({"kv_offloading_disk_size": float("nan")}, "kv_offloading_disk_size must be"),
        ({"kv_offloading_dir": ""}, "kv_offloading_dir must be"),
        ({"kv_offloading_dir": "x", "enable_prefix_caching": False}, "enable_prefix_caching"),
        ({"preemption_mode": "drop"}, "preemption_mode must be one of auto, recompute, swap"),
        ({"preemption_mode": "swap"}, "give kv_offloading_size"),
    ],
    ids=str,
)
def test_wrong_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        EngineConfig.from_args(arguments)


def test_blocks_of_groups_of_layers(tmp_path: Path) -> None:
    """One of three layers sees all: three groups of one layer each; see `plan_layout`."""
    overrides = {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}
    folder = make_tiny_model("qwen2", tmp_path / "model", **overrides)
    executor = new_executor(folder, kv_offloading_dir=str(tmp_path / "kv"), max_model_len=190)
    assert executor.transfer is not None and len(executor.layer_groups) == 3
    assert executor.transfer.num_slots == 3 * 48
    executor.close()


def test_moves_carry_whole_blocks_of_all_layers(folder: Path) -> None:
    executor = new_executor(folder, kv_offloading_size=0.001, kv_cache_dtype="int8")
    assert executor._runner is not None and executor.transfer is not None
    blocks = executor._runner._storage.blocks
    blocks.copy_(torch.randint(0, 256, blocks.shape, dtype=torch.uint8))
    before = blocks.clone()
    transfers = Transfers(swap_outs=((3, 0), (5, 7)), swap_ins=((7, 3), (0, 9)))
    executor.transfer.swap(transfers, executor.transfer.pairs(transfers))
    assert torch.equal(blocks[:, :, 3], before[:, :, 5]) and torch.equal(blocks[:, :, 9], before[:, :, 3])
    untouched = [i for i in range(blocks.shape[2]) if i not in (3, 9)]
    assert torch.equal(blocks[:, :, untouched], before[:, :, untouched])
    block_bytes = before[:, :, 0].numel()
    stats = executor.transfer.stats()
    assert (stats.stored_bytes, stats.loaded_bytes) == (2 * block_bytes, 2 * block_bytes)


def test_blocks_that_lie_otherwise_are_kept_apart(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for token_major_keys in (False, True, True):
        monkeypatch.setattr(ReferenceKernels, "token_major_keys", token_major_keys)
        new_executor(folder, kernel_backend="reference", kv_offloading_dir=str(tmp_path)).close()
    assert len(list(tmp_path.glob("*.kvblocks"))) == 2


def test_a_folder_in_use_is_not_shared(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = new_executor(folder, kv_offloading_dir=str(tmp_path))
    second = new_executor(folder, kv_offloading_dir=str(tmp_path))
    assert first.transfer is not None and first.transfer.disk is not None
    assert second.transfer is not None and second.transfer.disk is None
    assert "is not used: another process uses" in caplog.text
    second.close()
    first.close()
    third = new_executor(folder, kv_offloading_dir=str(tmp_path))
    assert third.transfer is not None and third.transfer.disk is not None
    third.close()


def test_a_folder_that_cannot_be_used_is_left(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "hash.key").write_bytes(b"no key")
    for name, words in (("file", "exists"), ("bad", "is not a key of 32 bytes")):
        executor = new_executor(folder, kv_offloading_dir=str(tmp_path / name))
        assert executor.transfer is not None and executor.transfer.disk is None
        assert "is not used" in caplog.text and words in caplog.text
        executor.close()
    real = os.open

    def refuse(path: Any, *args: Any, **kwargs: Any) -> int:
        if "locked" in str(path):
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    executor = new_executor(folder, kv_offloading_dir=str(tmp_path / "locked"))
    assert executor.transfer is not None and executor.transfer.disk is None
    assert "Permission denied" in caplog.text
    executor.close()


def test_a_checkpoint_is_told_by_its_weights(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path)
    first = checkpoint_fingerprint(folder)
    assert checkpoint_fingerprint(folder) == first
    weights = folder / "model.safetensors"
    times = weights.stat().st_atime_ns, weights.stat().st_mtime_ns
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=times)
    assert checkpoint_fingerprint(folder) != first, "the same size and time, other weights"
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=times)
    assert checkpoint_fingerprint(folder) == first
    os.utime(weights, ns=(1, 1))
    assert checkpoint_fingerprint(folder) != first
    config = folder / "config.json"
    os.utime(weights, ns=times)
    config.write_text(config.read_text() + " ")
    assert checkpoint_fingerprint(folder) != first
