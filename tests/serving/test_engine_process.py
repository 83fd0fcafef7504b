"""Both hosts over an engine in a process of its own, which has another rank beside it: a worker that loses one of them
is replaced, and a worker that is lost leaves nothing behind."""

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

DEPLOYMENT: dict[str, Any] = {
    "engine": {"model": "paged-tiny", "num_threads": 1, "engine_process": True, "tensor_parallel_size": 2}
}
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


def rank_of(engine: psutil.Process) -> psutil.Process:
    (rank,) = [process for process in engine.children() if any("executor.rank" in part for part in process.cmdline())]
    return rank


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
        said, worker = text(), first
        for victim, word in ((engine_of, "has died"), (lambda pid: rank_of(engine_of(pid)), "Rank 1 of 2 ended")):
            engine = engine_of(worker)
            rank = rank_of(engine)
            with httpx.stream("POST", f"{url}/v1/completions", json=LONG, timeout=60) as reply:
                lines = reply.iter_lines()
                assert next(lines).startswith("data: ")
                victim(worker).send_signal(signal.SIGKILL)
                with contextlib.suppress(httpx.TransportError):  # the worker's end may cut the last words off
                    assert sum(word in line for line in lines) == 1
            worker = other_worker(worker)
            assert is_gone(engine) and is_gone(rank)
            assert text() == said
        lost = [engine_of(worker), rank_of(engine_of(worker))]
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: all(map(is_gone, lost)), timeout_s=30, what="the end of the engine and its rank")
        last = engine_of(other_worker(worker))
        assert text() == said
    assert is_gone(last)
