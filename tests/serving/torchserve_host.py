"""A live TorchServe for tests: the launcher in a process of its own, on free ports."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.serving.processes import free_ports, kill_tree, process_tree, read_tail, wait_until

START_TIMEOUT_S = 180.0
TEST_MODEL = os.environ.get("PAGED_BACKEND_TEST_MODEL", "paged-tiny")

_LAUNCH = """
import sys
from pathlib import Path
from paged_backend.handlers.deployment import Deployment
from paged_backend.handlers.torchserve.launch import serve
sys.exit(serve(Deployment.load(sys.argv[1]), archive_format=sys.argv[2], on_ready=print))
"""


class TorchServeHost:
    """One server. Its routes are under `url`, its log is in `log_file`.

    Args:
        folder: for the deployment's YAML file and the log.
        deployment: changes to the deployment of the bundled model; ports are chosen here.
    """

    def __init__(
        self,
        folder: Path,
        deployment: Mapping[str, Any] | None = None,
        *,
        archive_format: str = "no-archive",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.log_file = folder / "torchserve.log"
        self.port, self.management_port, metrics_port = free_ports(3)
        given = dict(deployment or {})
        engine = {} if "models" in given else {"engine": {"model": TEST_MODEL}}
        config = {"name": "paged-tiny", "version": "1.0", **engine, **given}
        config["server"] = {"port": self.port, **given.get("server", {})}
        config["torchserve"] = {
            "management_port": self.management_port,
            "metrics_port": metrics_port,
            **given.get("torchserve", {}),
        }
        config_file = folder / "deployment.yaml"
        config_file.write_text(yaml.safe_dump(config), encoding="utf-8")
        self.name: str = config["name"]
        self.url = f"http://127.0.0.1:{self.port}/predictions/{self.name}/{config['version']}"
        self._command = [sys.executable, "-c", _LAUNCH, str(config_file), archive_format]
        self._environment = {
            **{name: value for name, value in os.environ.items() if name != "PAGED_BACKEND_API_KEY"},
            **(environment or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._seen: list[psutil.Process] = []

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the server was not started"
        return self._process

    def start(self, *, archive_format: str | None = None, environment: Mapping[str, str] | None = None) -> None:
        """Starts the launcher and returns at once; what is given replaces what was given before."""
        if archive_format is not None:
            self._command[-1] = archive_format
        self._environment.update(environment or {})
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=subprocess.STDOUT)

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> float:
        """Waits until a worker is ready; returns the seconds that it took."""

        def ready() -> bool:
            assert self.process.poll() is None, f"the server has ended:\n{read_tail(self.log_file)}"
            self._seen = process_tree(self.process.pid)
            return self.worker_pid() is not None

        try:
            return wait_until(ready, timeout_s=timeout_s, what="a worker that is READY")
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{read_tail(self.log_file)}") from None

    def worker_pid(self) -> int | None:
        """The process with the engine; None while there is none that is ready."""
        try:
            reply = httpx.get(f"http://127.0.0.1:{self.management_port}/models/{self.name}", timeout=5)
            workers = reply.json()[0]["workers"]
        except (httpx.TransportError, ValueError, KeyError):
            return None
        return next((int(one["pid"]) for one in workers if one["status"] == "READY"), None)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels; 0 where there are none."""
        text = httpx.get(f"{self.url}/metrics", timeout=10).raise_for_status().text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def wait_busy(self, timeout_s: float) -> float:
        """Waits until something runs; returns the seconds that it took."""
        return wait_until(
            lambda: self.metric("vllm:num_requests_running") > 0,
            timeout_s=timeout_s,
            what="a running request",
            interval_s=0.02,
        )

    def wait_idle(self, timeout_s: float) -> float:
        """Waits until nothing runs and nothing waits; returns the seconds that it took."""
        return wait_until(
            lambda: self.metric("vllm:num_requests_running") == 0 and self.metric("vllm:num_requests_waiting") == 0,
            timeout_s=timeout_s,
            what="an idle engine",
            interval_s=0.02,
        )

    def interrupt(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Tells the launcher to stop, as a user or a supervisor does."""
        self._seen = process_tree(self.process.pid)
        self.process.send_signal(number)

    def wait_gone(self, timeout_s: float) -> float:
        """Waits for the end of all its processes, after somebody told them to end; returns the seconds."""
        start_s = time.monotonic()
        self.process.wait(timeout=timeout_s)
        _, alive = psutil.wait_procs(self._seen, timeout=2)
        assert not alive, alive
        return time.monotonic() - start_s

    def stop(self) -> None:
        """Ends it and whatever it has left; it may have ended already."""
        if self._process is None:
            return
        self._seen += [one for one in process_tree(self._process.pid) if one not in self._seen]
        kill_tree(self._process.pid, grace_s=30)
        self._process.wait(timeout=10)
        for one in self._seen:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self._process = None


@contextlib.contextmanager
def running_torchserve(
    deployment: Mapping[str, Any] | None = None, folder: Path | None = None, **options: Any
) -> Iterator[TorchServeHost]:
    """A server that is ready, stopped at the end.

    Args:
        deployment: changes to the deployment of the bundled model.
        folder: for its files; None means a temporary one.
        options: `archive_format`, `environment`.
    """
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="paged-test-")))
        host = TorchServeHost(folder, deployment, **options)
        stack.callback(host.stop)
        host.start()
        host.wait_ready()
        yield host
