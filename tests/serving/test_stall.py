"""An engine that has work and makes no step: /health says so, the worker is replaced, and another one serves."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.serving.bento_host import BentoHost
from tests.serving.processes import wait_until
from tests.serving.torchserve_host import running_torchserve

DEPLOYMENT: dict[str, Any] = {
    "engine": {"model": "paged-tiny", "num_threads": 1, "max_num_seqs": 8, "max_num_batched_tokens": 256},
    "server": {"stall_timeout_s": 4},
}
BODY = {"prompt": "Once upon a time", "max_tokens": 4, "temperature": 0}


def environment(stall_file: Path) -> dict[str, str]:
    paths = [str(Path(__file__).with_name("stall")), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "STALL_FILE": str(stall_file)}


@contextlib.contextmanager
def bento(folder: Path, stall_file: Path) -> Iterator[tuple[str, Callable[[], int | None]]]:
    with BentoHost(folder, DEPLOYMENT, extra_environment=environment(stall_file)) as host:
        host.wait_ready()

        def worker_pid() -> int | None:
            return host.worker().pid if host.status("/readyz") == 200 else None

        yield host.url, worker_pid


@contextlib.contextmanager
def torchserve(folder: Path, stall_file: Path) -> Iterator[tuple[str, Callable[[], int | None]]]:
    with running_torchserve(DEPLOYMENT, folder, environment=environment(stall_file)) as host:
        yield host.url, host.worker_pid


@pytest.mark.parametrize("serve", [bento, torchserve])
def test_a_stalled_engine_is_seen_and_replaced(serve: Any, tmp_path: Path) -> None:
    stall_file = tmp_path / "stall"
    with serve(tmp_path, stall_file) as (url, worker_pid):
        served = httpx.post(f"{url}/v1/completions", json=BODY, timeout=60)
        assert served.status_code == 200
        first = worker_pid()
        assert first is not None
        stall_file.touch()
        told: list[str] = []

        def ask(stream: bool) -> None:
            told.append(httpx.post(f"{url}/v1/completions", json={**BODY, "stream": stream}, timeout=60).text)

        askers = [threading.Thread(target=ask, args=(stream,)) for stream in (False, True)]
        for asker in askers:
            asker.start()
        healths: list[httpx.Response] = []

        def is_ill() -> bool:
            with contextlib.suppress(httpx.TransportError):
                healths.append(httpx.get(f"{url}/health", timeout=10))
            return bool(healths) and healths[-1].status_code == 503

        wait_until(is_ill, timeout_s=30, what="a /health that fails", interval_s=0.1)
        assert "no step" in healths[-1].json()["error"]["message"]
        wait_until(lambda: not psutil.pid_exists(first), timeout_s=30, what="the end of the worker")
        stall_file.unlink()
        for asker in askers:
            asker.join(timeout=60)
        assert len(told) == 2 and all("The engine has made no step for" in text for text in told), told
        wait_until(lambda: worker_pid() not in (None, first), timeout_s=180, what="another worker", interval_s=0.2)
        again = httpx.post(f"{url}/v1/completions", json=BODY, timeout=60)
        assert again.json()["choices"] == served.json()["choices"]
        assert httpx.get(f"{url}/health", timeout=10).status_code == 200
