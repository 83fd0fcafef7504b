"""Both hosts over an engine in a process of its own: a worker that loses its engine is replaced, and a worker that is
lost leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.serving.bento_host import BentoHost
from tests.serving.processes import wait_until
from tests.serving.torchserve_host import running_torchserve

pytestmark = pytest.mark.slow

DEPLOYMENT: dict[str, Any] = {"engine": {"model": "paged-tiny", "num_threads": 1, "engine_process": True}}
BODY = {"prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}
LONG = {**BODY, "n": 32, "max_tokens": 400, "ignore_eos": True, "stream": True}

WorkerPid = Callable[[], "int | None"]


@contextlib.contextmanager
def bento(folder: Path) -> Iterator[tuple[str, WorkerPid]]:
    with BentoHost(folder, DEPLOYMENT) as host:
        host.wait_ready()
        yield host.url, lambda: host.worker().pid if host.status("/readyz") == 200 else None


@contextlib.contextmanager
def torchserve(folder: Path) -> Iterator[tuple[str, WorkerPid]]:
    with running_torchserve(DEPLOYMENT, folder) as host:
        yield host.url, host.worker_pid


def engine_of(worker_pid: int) -> psutil.Process:
    (engine,) = [
        process
        for process in psutil.Process(worker_pid).children()
        if any("engine.process.child" in part for part in process.cmdline())
    ]
    return engine


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("serve", [bento, torchserve])
def test_an_engine_that_is_lost_is_replaced(serve: Any, tmp_path: Path) -> None:
    with serve(tmp_path) as (url, worker_pid):

        def text() -> str:
            reply = httpx.post(f"{url}/v1/completions", json=BODY, timeout=60)
            assert reply.status_code == 200, reply.text
            answer: str = reply.json()["choices"][0]["text"]
            return answer

        def other_worker(before: int) -> int:
            wait_until(lambda: worker_pid() not in (None, before), timeout_s=180, what="another worker", interval_s=0.2)
            found = worker_pid()
            assert found is not None
            return found

        first = worker_pid()
        assert first is not None
        said, engine = text(), engine_of(first)
        with httpx.stream("POST", f"{url}/v1/completions", json=LONG, timeout=60) as reply:
            lines = reply.iter_lines()
            assert next(lines).startswith("data: ")
            engine.send_signal(signal.SIGKILL)
            with contextlib.suppress(httpx.TransportError):  # the worker's end may cut the last words off
                assert sum("has died" in line for line in lines) == 1
        second = other_worker(first)
        assert text() == said
        engine = engine_of(second)
        os.kill(second, signal.SIGKILL)
        wait_until(lambda: is_gone(engine), timeout_s=30, what="the end of the engine")
        last = engine_of(other_worker(second))
        assert text() == said
    assert is_gone(last)
