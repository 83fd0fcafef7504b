"""Models with sliding windows, their blocks swapped, brought back from host memory and from disk: the same bits."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from paged_backend.engine.core import EngineCore
from paged_backend.outputs import RequestOutput
from paged_backend.sampling_params import SamplingParams
from tests.engine_driver import new_core, run_core
from tests.tiny_models import make_tiny_model

WINDOW = 20
BLOCK_SIZE = 4
HOST_GIB = 0.02
"""More than all of the requests' blocks."""
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "all layers": ("mistral", {"sliding_window": WINDOW}),
    "the last two": ("qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
}


@pytest.fixture(scope="module", params=tuple(MODELS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, overrides = MODELS[request.param]
    return make_tiny_model(family, tmp_path_factory.mktemp("model"), **overrides)


def requests() -> list[tuple[list[int], SamplingParams]]:
    rng = random.Random(11)
    system = [rng.randrange(5, 300) for _ in range(62)]
    found = []
    for i in range(8):
        own = [rng.randrange(5, 300) for _ in range(rng.randrange(3, 60))]
        params = SamplingParams(
            n=1 + 2 * (i % 2), temperature=1.0, seed=i, max_tokens=20 + 4 * i, ignore_eos=True, logprobs=2
        )
        found.append(([*system, *own], params))
    return found


def start(folder: Path, **arguments: Any) -> EngineCore:
    defaults = {"block_size": BLOCK_SIZE, "max_model_len": 192, "max_num_seqs": 8, "max_num_batched_tokens": 48}
    return new_core(folder, **{**defaults, **arguments})


def gist(outputs: list[RequestOutput]) -> list[Any]:
    """All that must not change: tokens, logprobs, reasons."""
    return [(s.token_ids, s.logprobs, s.finish_reason) for output in outputs for s in output.outputs]


def full_blocks(output: RequestOutput) -> int:
    """Tokens that a prefix can have at most."""
    return (len(output.prompt_token_ids) - 1) // BLOCK_SIZE * BLOCK_SIZE


@pytest.fixture(scope="module")
def cold(folder: Path) -> list[Any]:
    """Each request by itself, whole, in an engine that has seen nothing."""
    core = start(folder, enable_prefix_caching=False, max_num_batched_tokens=256)
    return gist([run_core(core, [request])[0] for request in requests()])


@pytest.mark.parametrize("caching", [True, False], ids=["caching", "no caching"])
@pytest.mark.parametrize("mode", ["swap", "recompute", "auto"])
def test_preempted(folder: Path, cold: list[Any], caching: bool, mode: str) -> None:
    needed = start(folder, max_num_batched_tokens=16)._kv.blocks_for(192)
    core = start(
        folder,
        max_num_batched_tokens=16,
        num_gpu_blocks_override=needed,
        kv_offloading_size=HOST_GIB,
        preemption_mode=mode,
        enable_prefix_caching=caching,
    )
    assert gist(run_core(core, [*requests(), *requests()], steps_between=1)) == [*cold, *cold]
    core._kv.check_invariants()
    stats = core.stats()
    assert stats.num_preemptions > 0 and stats.num_used_blocks == stats.num_swapped == 0
    if mode != "auto":
        assert (stats.num_swaps > 0) == (mode == "swap")


def test_evicted_prefixes_come_back(folder: Path, cold: list[Any]) -> None:
    needed = start(folder)._kv.blocks_for(192)
    core = start(folder, num_gpu_blocks_override=needed, kv_offloading_size=HOST_GIB)
    for _ in range(2):
        outputs = [run_core(core, [request])[0] for request in requests()]
        assert gist(outputs) == cold
    assert [output.num_cached_tokens for output in outputs] == [full_blocks(output) for output in outputs]
    assert core.stats().external_prefix_cache_hits > 0


def test_a_prefix_survives_a_restart(folder: Path, cold: list[Any], tmp_path: Path) -> None:
    """With host memory of the size that the folder alone asks for."""
    for steps_between in (0, 1):
        core = start(folder, kv_offloading_dir=str(tmp_path))
        groups, transfer = core._kv.groups, core._transfer
        assert transfer is not None and transfer.num_slots == len(groups) * 192 // BLOCK_SIZE
        (first,) = run_core(core, requests()[:1])
        if steps_between:
            assert first.num_cached_tokens == full_blocks(first)
        assert gist(run_core(core, requests(), steps_between=steps_between)) == cold
        core._kv.check_invariants()
        stats = core.stats()
        assert stats.transfer is not None and stats.transfer.disk is not None
        assert stats.transfer.disk.num_failures == 0
        assert (stats.transfer.disk.read_bytes > 0) == (steps_between > 0)
        core.close()
    (blocks,) = tmp_path.glob("*.kvblocks")
    data = bytearray(blocks.read_bytes())
    for position in range(5000, len(data), 3001):
        data[position] ^= 16
    blocks.write_bytes(data)
    core = start(folder, kv_offloading_dir=str(tmp_path))
    assert gist(run_core(core, requests())) == cold
    core.close()


def test_another_layouts_blocks_are_not_used(folder: Path, tmp_path: Path) -> None:
    """The same checkpoint, its layers in other places of a block. Where they are in the same ones, one file serves."""
    request = (list(range(5, 18)), SamplingParams(max_tokens=2))
    num_cached: dict[int, list[int]] = {}
    for max_model_len in (192, WINDOW, 192):
        core = start(folder, kv_offloading_dir=str(tmp_path), max_model_len=max_model_len)
        (output,) = run_core(core, [request])
        num_cached.setdefault(len(core._kv.groups), []).append(output.num_cached_tokens)
        core.close()
    assert num_cached in ({1: [0, 12, 12]}, {3: [0, 12], 1: [0]})
    assert len(list(tmp_path.glob("*.kvblocks"))) == len(num_cached)
