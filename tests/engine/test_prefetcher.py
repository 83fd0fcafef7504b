"""A prefix on disk is read beside the running batch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paged_backend.engine import prefetcher
from paged_backend.engine.core import EngineCore
from paged_backend.engine.request import request_key
from paged_backend.executor.block_file import BlockFile
from paged_backend.sampling_params import SamplingParams
from tests.engine_driver import Collector, new_core, new_request, run_core
from tests.tiny_models import make_tiny_model

WAIT_S = 60.0
PROMPT = [5 + i * 7 % 90 for i in range(33)]
PARAMS = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("llama"))


class SlowDisk:
    """Reads wait for the gate."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = threading.Event()
        self.num_reads = 0
        real = BlockFile.read

        def read(file: BlockFile, *args: Any) -> bool:
            assert self.gate.wait(WAIT_S)
            self.num_reads += 1
            return real(file, *args)

        monkeypatch.setattr(BlockFile, "read", read)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    monkeypatch.setattr(prefetcher, "_MAX_WAIT_S", WAIT_S)
    return SlowDisk(monkeypatch)


@pytest.fixture
def core(folder: Path, tmp_path: Path, disk: SlowDisk) -> Iterator[EngineCore]:
    """An engine that was started again: PROMPT is on its disk."""
    arguments = {"block_size": 4, "max_model_len": 64, "kv_offloading_dir": str(tmp_path), "kv_offloading_size": 0.01}
    first = new_core(folder, **arguments)
    run_core(first, [(PROMPT, PARAMS)])
    first.close()
    core = new_core(folder, **arguments)
    yield core
    disk.gate.set()
    core.close()


def add(core: EngineCore, collector: Collector, name: str, prompt: list[int]) -> None:
    request = new_request(name, prompt, PARAMS)
    collector.expect(request)
    core.add(request)


def finish(core: EngineCore, collector: Collector) -> None:
    while core.has_work():
        collector.take(core.step())
    core._scheduler.check_invariants()


def test_others_go_on_while_it_is_read(core: EngineCore, disk: SlowDisk) -> None:
    collector = Collector()
    add(core, collector, "waits", PROMPT)
    add(core, collector, "runs", [9, 8, 7])
    for _ in range(6):
        collector.take(core.step())
    assert collector.finished == ["runs"]
    assert core.has_work() and core.stats().num_waiting == 1 and core.stats().num_running == 0
    assert core.step() == [], "nothing to do but wait"
    disk.gate.set()
    finish(core, collector)
    output = collector.outputs["waits"]
    assert output.num_cached_tokens == 32 and len(output.outputs[0].token_ids) == 6
    stats = core.stats()
    assert stats.external_prefix_cache_hits == 32 and stats.prefix_cache_hits == 0


def test_two_wait_for_one_read(core: EngineCore, disk: SlowDisk) -> None:
    collector = Collector()
    add(core, collector, "first", PROMPT)
    add(core, collector, "second", [*PROMPT, 3, 4, 5])
    core.step()
    assert core.stats().num_waiting == 2
    disk.gate.set()
    finish(core, collector)
    assert [collector.outputs[name].num_cached_tokens for name in ("first", "second")] == [32, 32]
    assert disk.num_reads == 8


def test_a_request_that_is_aborted_while_it_waits(core: EngineCore, disk: SlowDisk) -> None:
    collector = Collector()
    add(core, collector, "gone", PROMPT)
    collector.take(core.abort(request_key("", "gone")))
    assert collector.finished == ["gone"] and not core.has_work()
    disk.gate.set()
    add(core, collector, "later", PROMPT)
    finish(core, collector)
    assert collector.outputs["later"].num_cached_tokens == 32
    assert disk.num_reads == 8, "what was on its way is not read again"


def test_a_disk_that_takes_too_long_is_not_waited_for(
    core: EngineCore, disk: SlowDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetcher, "_MAX_WAIT_S", 0.0)
    collector = Collector()
    add(core, collector, "impatient", PROMPT)
    finish(core, collector)
    output = collector.outputs["impatient"]
    assert output.num_cached_tokens == 0 and len(output.outputs[0].token_ids) == 6
    disk.gate.set()
    add(core, collector, "next", PROMPT)
    finish(core, collector)
    core._kv.check_invariants()


def test_requests_that_wait_end_with_the_engine(core: EngineCore, disk: SlowDisk) -> None:
    collector = Collector()
    add(core, collector, "waits", PROMPT)
    (state,) = core.end_all("it is over")
    assert state.over and state.error is not None and not core.has_work()
    disk.gate.set()
