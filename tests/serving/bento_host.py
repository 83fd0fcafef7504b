"""A live BentoML server for tests: `bentoml serve`, as a user types it, with a home and a port of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import psutil
import yaml

from paged_backend.handlers.bento.launch import SERVICE
from tests.serving.processes import free_ports, kill_tree, process_tree, read_tail, wait_until

START_TIMEOUT_S = 120.0
TEST_MODEL = os.environ.get("PAGED_BACKEND_TEST_MODEL", "paged-tiny")


class BentoHost:
    """One server, running from `__enter__` to `__exit__`.

    Args:
        folder: an empty folder for its configuration, its home and its log.
        deployment: changes to the deployment of the bundled model.
        target: what `bentoml serve` is given.
        extra_environment: added to its environment.
        working_dir: where it is started.
    """

    def __init__(
        self,
        folder: Path,
        deployment: Mapping[str, Any] | None = None,
        *,
        target: str = SERVICE,
        extra_environment: Mapping[str, str] | None = None,
        working_dir: Path | None = None,
    ) -> None:
        self.folder = folder
        self.log_file = folder / "serve.log"
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        # One thread: with several, each step waits for all of them, which takes long where tests share the cores.
        given = dict(deployment or {})
        engine = {} if "models" in given else {"engine": {"model": TEST_MODEL, "num_threads": 1}}
        config = {"name": "paged-tiny", **engine, **given}
        config_file = folder / "deployment.yaml"
        config_file.write_text(yaml.safe_dump(config), encoding="utf-8")
        self._command = [
            *(sys.executable, "-m", "bentoml", "serve", target),
            *("--host", "127.0.0.1", "--port", str(self.port)),
        ]
        self._environment = {
            **{name: value for name, value in os.environ.items() if name != "PAGED_BACKEND_API_KEY"},
            "BENTOML_HOME": str(folder / "home"),
            "BENTOML_DO_NOT_TRACK": "True",
            "PAGED_BACKEND_CONFIG": str(config_file),
            **(extra_environment or {}),
        }
        self._working_dir = working_dir or folder
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> BentoHost:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the server was not started"
        return self._process

    def start(self) -> None:
        """Starts the server and returns at once; one that still runs is ended first."""
        self.stop()
        (self.folder / "home").mkdir(exist_ok=True)
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=self._working_dir,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def stop(self) -> None:
        """Ends it and its workers; it may have ended already."""
        if self._process is not None:
            kill_tree(self._process.pid, grace_s=20)
            self._process.wait(timeout=10)

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> float:
        """Waits until /readyz says 200; returns the seconds that it took."""

        def ready() -> bool:
            assert self.process.poll() is None, f"the server has ended:\n{read_tail(self.log_file)}"
            return self.status("/readyz") == 200

        try:
            return wait_until(ready, timeout_s=timeout_s, what="/readyz")
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{read_tail(self.log_file)}") from None

    def status(self, path: str) -> int:
        """The status of a GET; 0 while nobody answers."""
        try:
            return httpx.get(f"{self.url}{path}", timeout=5).status_code
        except httpx.TransportError:
            return 0

    def worker(self) -> psutil.Process:
        """The process with the engine."""
        workers = [
            process
            for process in process_tree(self.process.pid)[1:]
            if any("_bentoml_impl.worker.service" in part for part in process.cmdline())
        ]
        assert len(workers) == 1, workers
        return workers[0]

    def post(self, path: str, body: Any, timeout_s: float = 60) -> httpx.Response:
        """A POST of JSON."""
        return httpx.post(f"{self.url}{path}", json=body, timeout=timeout_s)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels; 0 where there are none."""
        return metric_value(httpx.get(f"{self.url}/metrics", timeout=5).text, name, **labels)

    def wait_busy(self, timeout_s: float = 30) -> None:
        """Waits until something runs."""
        wait_until(
            lambda: self.metric("vllm:num_requests_running") > 0,
            timeout_s=timeout_s,
            what="a running request",
            interval_s=0.02,
        )

    def wait_idle(self, timeout_s: float) -> float:
        """Waits until nothing runs and nothing waits; returns the seconds that it took."""
        return wait_until(
            lambda: self.metric("vllm:num_requests_running") == 0 == self.metric("vllm:num_requests_waiting"),
            timeout_s=timeout_s,
            what="an idle engine",
            interval_s=0.02,
        )

    def wait_gone(self, timeout_s: float) -> float:
        """Waits for the end of the server and its workers, after somebody told it to end."""
        tree = process_tree(self.process.pid)
        start = time.monotonic()
        self.process.wait(timeout=timeout_s)
        _, alive = psutil.wait_procs(tree[1:], timeout=2)
        assert not alive, alive
        return time.monotonic() - start


def metric_value(text: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples in an exposition that have these labels."""
    total = 0.0
    for line in text.splitlines():
        match = re.fullmatch(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)(?: \S+)?", line)
        if match is None or match[1] != name:
            continue
        found = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or ""))
        if labels.items() <= found.items():
            total += float(match[3])
    return total


def sse(text: str) -> list[Any]:
    """The data of a stream's frames; the last, `[DONE]`, as it is."""
    return [
        "[DONE]" if line == "data: [DONE]" else json.loads(line[6:])
        for line in text.splitlines()
        if line.startswith("data: ")
    ]
