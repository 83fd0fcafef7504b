"""An engine in a process of its own: how it starts, and that no end of either process leaves anything behind."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from paged_backend.config import EngineConfig
from paged_backend.engine.client import EngineClient
from paged_backend.engine.process.engine_process import EngineProcess
from paged_backend.errors import ConfigError, EngineUnavailableError, ModelLoadError, PagedBackendError
from tests.engine.engine_processes import ENGINE, LONG, QUICK, TIMEOUT_S, engine_of, pause, wait_gone, wait_until
from tests.tiny_models import make_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("llama"), tokenizer=True)


def test_a_process_that_is_killed_ends_every_request_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    client = EngineClient.start(EngineConfig.from_args({**ENGINE, "engine_process": True}, model=str(folder)))
    (loaded,) = [record for record in caplog.records if "is loaded" in record.getMessage()]
    assert loaded.process == engine_of(client).pid
    streams = [client.submit([5 + i], dataclasses.replace(LONG, n=1 + i % 2)) for i in range(12)]
    ends: list[int] = []
    for stream in streams:
        stream.add_done_callback(ends.append)
    next(streams[0])
    with pause(client):
        asked: list[BaseException] = []

        def ask() -> None:
            with pytest.raises(EngineUnavailableError) as raised:
                client.stats(kv_map=True)
            asked.append(raised.value)

        asker = threading.Thread(target=ask)
        asker.start()
        wait_until(lambda: bool(client._desk._asked))
        os.kill(engine_of(client).pid, signal.SIGKILL)

    async def read(stream: Any) -> type:
        try:
            await stream.collect_async()
        except PagedBackendError as error:
            return type(error)
        raise AssertionError

    async def read_all() -> list[type]:
        return await asyncio.gather(*map(read, streams[6:]))

    for stream in streams[:6]:
        with pytest.raises(EngineUnavailableError, match=r"has died \(SIGKILL\)"):
            stream.collect()
    assert set(asyncio.run(read_all())) == {EngineUnavailableError}
    asker.join(TIMEOUT_S)
    assert len(asked) == 1 and len(ends) == 12
    for refused in (client.check_health, lambda: client.submit([5], QUICK)):
        with pytest.raises(EngineUnavailableError, match="must be restarted"):
            refused()
    assert client.stats().num_running == client.stats().num_used_blocks == 0
    assert 'finished_reason="error"' in client.metrics_text()
    assert any("has died (SIGKILL)" in record.getMessage() for record in caplog.records)
    client.shutdown()


PROGRAM = """
import sys
from paged_backend import LLM, SamplingParams
llm = LLM(sys.argv[1], num_threads=1, engine_process=True)
for _ in range(8):
    llm._client.submit([5], SamplingParams(max_tokens=500, ignore_eos=True))
print(llm._client._engine.pid, flush=True)
if sys.argv[2] == "exit":
    raise SystemExit(3)
sys.stdin.read()
"""


@pytest.mark.parametrize("end", [pytest.param("exit", marks=pytest.mark.slow), "kill"])
def test_a_program_that_ends_takes_the_process_down_with_it(folder: Path, end: str) -> None:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder), end], text=True, **pipes) as program:
        assert program.stdout is not None and program.stderr is not None
        line = program.stdout.readline()
        pid = int(line or program.stderr.read())
        if end == "kill":
            os.kill(pid, signal.SIGSTOP)  # nothing that it would have to do itself
            program.kill()
        assert program.wait(TIMEOUT_S) == (3 if end == "exit" else -signal.SIGKILL)
        wait_gone(pid)
        assert program.stderr.read() == ""


def test_what_keeps_it_from_starting_is_told(folder: Path, tmp_path: Path) -> None:
    def refusal(engine_process: bool, model: Path, arguments: dict[str, Any]) -> tuple[type, str]:
        config = EngineConfig.from_args({**ENGINE, **arguments, "engine_process": engine_process}, model=str(model))
        with pytest.raises(PagedBackendError) as raised:
            EngineClient.start(config)
        return raised.type, str(raised.value)

    cases: list[tuple[type, Path, dict[str, Any]]] = [
        (ModelLoadError, tmp_path, {}),
        (ConfigError, folder, {"logits_processors": ["no_such_module:name"]}),
    ]
    with ThreadPoolExecutor(2) as pool:
        there = list(pool.map(lambda case: refusal(True, *case[1:]), cases))
    assert there == [refusal(False, *case[1:]) for case in cases]
    assert [kind for kind, _ in there] == [case[0] for case in cases]


def test_one_that_is_killed_while_it_loads(folder: Path) -> None:
    engine = EngineProcess(EngineConfig.from_args({"engine_process": True}, model=str(folder)))
    wait_until(lambda: hasattr(engine, "pid"))
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(ModelLoadError, match=r"ended \(SIGKILL\) while it loaded"):
        engine.wait_ready()
    wait_gone(engine.pid)
