"""Tokens and logprobs are the same bits whatever became of the blocks: swapped, computed again, from disk, or cold."""

from __future__ import annotations

import errno
import itertools
import os
import random
import re
from pathlib import Path
from typing import Any

import pytest

from paged_backend.engine.core import EngineCore
from paged_backend.outputs import RequestOutput
from paged_backend.sampling_params import SamplingParams
from tests.engine_driver import Collector, new_core, new_request, run_core
from tests.tiny_models import VOCAB_SIZE, make_tiny_model

BLOCK_SIZE = 4
SYSTEM_TOKENS = 34
HOST_GIB = 0.01
"""More than all of the requests' blocks."""


def requests() -> list[tuple[list[int], SamplingParams]]:
    rng = random.Random(7)
    system = [rng.randrange(2, VOCAB_SIZE) for _ in range(SYSTEM_TOKENS)]
    found = []
    for i in range(12):
        own = [rng.randrange(2, VOCAB_SIZE) for _ in range(rng.randrange(3, 40))]
        params = SamplingParams(
            n=2 if i % 4 == 3 else 1,
            temperature=0.0 if i % 3 == 0 else 1.3,
            seed=i,
            max_tokens=rng.randrange(5, 40),
            ignore_eos=True,
            logprobs=2,
        )
        found.append(([*system, *own], params))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("llama"))


def start(folder: Path, **arguments: Any) -> EngineCore:
    return new_core(folder, **{"block_size": BLOCK_SIZE, "max_model_len": 128, "max_num_seqs": 8, **arguments})


def run(core: EngineCore, steps_between: int = 0) -> list[RequestOutput]:
    outputs = run_core(core, requests(), steps_between=steps_between)
    core._kv.check_invariants()
    return outputs


def gist(outputs: list[RequestOutput]) -> list[Any]:
    """All that must not change: tokens, logprobs, reasons."""
    return [(s.token_ids, s.logprobs, s.finish_reason) for output in outputs for s in output.outputs]


@pytest.fixture(scope="module", params=["float32", "int8"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def cold(folder: Path, dtype: str) -> list[Any]:
    """Each request by itself in an engine that has seen nothing."""
    core = start(folder, kv_cache_dtype=dtype, enable_prefix_caching=False)
    outputs = [run_core(core, [request])[0] for request in requests()]
    core.close()
    return gist(outputs)


@pytest.mark.parametrize("caching", [True, False], ids=["caching", "no caching"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"preemption_mode": "recompute"},
        {"preemption_mode": "recompute", "kv_offloading_size": HOST_GIB},
        {"preemption_mode": "swap", "kv_offloading_size": HOST_GIB},
        {"preemption_mode": "swap", "kv_offloading_size": 0.0004},
        {"preemption_mode": "auto", "kv_offloading_size": HOST_GIB},
    ],
    ids=["recompute", "recompute, offload", "swap", "swap, too little memory", "auto"],
)
def test_preempted(folder: Path, dtype: str, cold: list[Any], caching: bool, arguments: dict[str, Any]) -> None:
    """A pool for one long sequence, and eight that want it."""
    core = start(folder, kv_cache_dtype=dtype, num_gpu_blocks_override=34, enable_prefix_caching=caching, **arguments)
    assert gist(run(core, steps_between=2)) == cold
    stats = core.stats()
    assert stats.num_preemptions > 0
    mode = arguments["preemption_mode"]
    if mode == "swap":
        assert stats.num_swaps > 0
    if mode == "recompute":
        assert stats.num_swaps == 0
    assert stats.num_swapped == 0 and stats.num_used_blocks == 0
    if "kv_offloading_size" in arguments:
        assert stats.transfer is not None
        if mode == "swap" or caching:
            assert stats.transfer.stored_bytes > 0
    core.close()


def test_evicted_prefixes_come_back(folder: Path, dtype: str, cold: list[Any]) -> None:
    core = start(folder, kv_cache_dtype=dtype, num_gpu_blocks_override=34, kv_offloading_size=HOST_GIB)
    one_by_one = [run_core(core, [request])[0] for request in requests()]
    assert gist(one_by_one) == cold
    again = [run_core(core, [request])[0] for request in requests()]
    assert gist(again) == cold
    stats = core.stats()
    assert stats.external_prefix_cache_hits > 0 and stats.transfer is not None and stats.transfer.loaded_bytes > 0
    for output in again:
        full = (len(output.prompt_token_ids) - 1) // BLOCK_SIZE * BLOCK_SIZE
        assert output.num_cached_tokens == full, "hits in host memory count as cached tokens"
    core.close()


def test_a_prefix_survives_a_restart(folder: Path, dtype: str, cold: list[Any], tmp_path: Path) -> None:
    arguments = {"kv_cache_dtype": dtype, "kv_offloading_dir": str(tmp_path), "kv_offloading_size": HOST_GIB}
    core = start(folder, **arguments)
    assert gist(run(core)) == cold
    core.close()
    core = start(folder, **arguments)
    outputs = run(core, steps_between=1)
    assert gist(outputs) == cold
    for output in outputs:
        assert output.num_cached_tokens == (len(output.prompt_token_ids) - 1) // BLOCK_SIZE * BLOCK_SIZE
    stats = core.stats()
    assert stats.transfer is not None and stats.transfer.disk is not None
    assert stats.transfer.disk.read_bytes > 0 == stats.transfer.disk.num_failures
    core.close()


def test_what_was_found_twice_survives_a_crash(folder: Path, tmp_path: Path) -> None:
    """Only a clean end writes all that is left; what a second request has found is on disk already."""
    arguments = {"kv_offloading_dir": str(tmp_path), "kv_offloading_size": HOST_GIB}
    core = start(folder, **arguments)
    for request in requests()[:3]:
        run_core(core, [request])
    core.close(keep_cache=False)
    core = start(folder, **arguments)
    (output,) = run_core(core, requests()[:1])
    assert output.num_cached_tokens == SYSTEM_TOKENS // BLOCK_SIZE * BLOCK_SIZE
    core.close()


def test_metrics(folder: Path, tmp_path: Path) -> None:
    arguments = {"kv_offloading_dir": str(tmp_path), "kv_offloading_size": HOST_GIB, "preemption_mode": "swap"}
    core = start(folder, num_gpu_blocks_override=34, **arguments)
    run(core)
    text = core._metrics.text(core.stats)
    values = dict(re.findall(r"^vllm:(\w+){[^}]*} (\S+)$", text, re.MULTILINE))
    stats = core.stats()
    assert stats.transfer is not None and stats.transfer.stored_bytes > 0 and stats.transfer.loaded_bytes > 0
    assert float(values["kv_offload_store_bytes_total"]) == stats.transfer.stored_bytes
    assert float(values["kv_offload_load_bytes_total"]) == stats.transfer.loaded_bytes
    assert float(values["kv_offload_cpu_cache_usage_perc"]) == stats.num_used_host_blocks / stats.num_host_blocks > 0
    assert float(values["external_prefix_cache_queries_total"]) > 0 == float(values["num_requests_swapped"])
    for name in ("external_prefix_cache_hits_total", "kv_offload_tiering_read_bytes_total"):
        assert name in values
    assert float(values["kv_offload_tiering_failures_total"]) == 0
    core.close()


def test_what_the_disk_gives_wrongly_is_computed(
    folder: Path, dtype: str, cold: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = {"kv_cache_dtype": dtype, "kv_offloading_dir": str(tmp_path)}
    core = start(folder, **arguments)
    run(core)
    core.close()
    (blocks,) = tmp_path.glob("*.kvblocks")
    data = bytearray(blocks.read_bytes())
    rng = random.Random(1)
    for position in range(5000, len(data), 3000):
        data[position] ^= 1 << rng.randrange(8)
    blocks.write_bytes(data)
    core = start(folder, **arguments)
    assert gist(run(core)) == cold
    assert "ignored" in caplog.text
    core.close()


def test_tenants_share_nothing_on_disk(folder: Path, tmp_path: Path) -> None:
    prompt, params = requests()[0]
    arguments = {"kv_offloading_dir": str(tmp_path), "kv_offloading_size": HOST_GIB}
    cached = {}
    for name, salts in (("first", ["a"]), ("second", ["b", None, "a"])):
        core = start(folder, **arguments)
        for salt in salts:
            collector = Collector()
            request = new_request(f"{name} {salt}", prompt, params, cache_salt=salt)
            collector.expect(request)
            core.add(request)
            while core.has_work():
                collector.take(core.step())
            cached[request.request_id] = collector.outputs[request.request_id].num_cached_tokens
        core.close()
    full = (len(prompt) - 1) // BLOCK_SIZE * BLOCK_SIZE
    assert cached == {"first a": 0, "second b": 0, "second None": 0, "second a": full}


@pytest.mark.parametrize(
    "change",
    [{"block_size": 8}, {"kv_cache_dtype": "bfloat16"}, {"quantization": "int8"}, {"dtype": "bfloat16"}],
    ids=str,
)
def test_another_engines_blocks_are_not_used(folder: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    arguments = {"kv_offloading_dir": str(tmp_path), "kv_offloading_size": HOST_GIB}
    for more in ({}, change):
        core = start(folder, **{**arguments, **more})
        (output,) = run_core(core, requests()[:1])
        assert output.num_cached_tokens == 0
        core.close()
    assert len(list(tmp_path.glob("*.kvblocks"))) == 2


def test_a_step_that_raises_while_it_swaps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in the step end with an error; whoever was just swapped out is computed again; no block leaks."""
    expected = gist(run(start(folder)))
    core = start(folder, num_gpu_blocks_override=34, kv_offloading_size=HOST_GIB, preemption_mode="swap")
    transfer = core._transfer
    assert transfer is not None
    real, broken = transfer.swap, []

    def swap_or_raise(transfers: Any, pairs: Any) -> Any:
        if transfers.swap_outs and len(broken) < 2:
            broken.append(transfers)
            raise RuntimeError("a copy failed")
        return real(transfers, pairs)

    monkeypatch.setattr(transfer, "swap", swap_or_raise)
    collector = Collector()
    for i, (prompt, params) in enumerate(requests()):
        request = new_request(f"r{i}", prompt, params)
        collector.expect(request)
        core.add(request)
    while core.has_work():
        collector.take(core.step())
        core._scheduler.check_invariants()
    assert len(broken) == 2 and collector.errors and len(collector.finished) == len(requests())
    whole = [collector.outputs[f"r{i}"] for i in range(len(requests())) if f"r{i}" not in collector.errors]
    assert whole
    survivors = gist(whole)
    assert all(one in expected for one in survivors)
    stats = core.stats()
    assert stats.num_used_blocks == 0 and stats.num_swapped == 0
    core.close()


@pytest.mark.parametrize("fault", ["full disk", "torn writes", "failing reads"])
def test_a_bad_disk_costs_no_request(
    folder: Path, dtype: str, cold: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, fault: str
) -> None:
    """Every third call fails, before and after a restart: what is not there is computed, what is wrong is not used."""
    pwrite, preadv = os.pwrite, os.preadv
    numbers = itertools.count()

    def write(descriptor: int, data: Any, offset: int) -> int:
        if next(numbers) % 3 == 2:
            if fault == "full disk":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            pwrite(descriptor, bytes(data)[: len(data) // 2], offset)  # and says that all is there
            return len(data)
        return pwrite(descriptor, data, offset)

    def read(descriptor: int, buffers: Any, offset: int) -> int:
        if next(numbers) % 3 == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(descriptor, buffers, offset)

    if fault == "failing reads":
        monkeypatch.setattr(os, "preadv", read)
    else:
        monkeypatch.setattr(os, "pwrite", write)
    num_failures = 0
    for _ in range(3):
        core = start(folder, kv_cache_dtype=dtype, kv_offloading_dir=str(tmp_path), num_gpu_blocks_override=60)
        assert gist(run(core, steps_between=1)) == cold
        stats = core.stats()
        assert (stats.num_used_blocks, stats.num_running, stats.num_waiting, stats.num_swapped) == (0, 0, 0, 0)
        assert core._transfer is not None and core._transfer.disk is not None
        disk = core._transfer.disk
        core.close()
        num_failures += disk.stats().num_failures
    if fault == "torn writes":  # nobody knows of them before they are read
        assert "ignored" in caplog.text
    else:
        assert num_failures > 0
