"""Runs TorchServe in the foreground: packs, starts, waits until it is ready, and stops all of it again."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paged_backend.errors import ConfigError, PagedBackendError
from paged_backend.handlers.deployment import Deployment
from paged_backend.handlers.launching import StopSignals, check_free, server_environment
from paged_backend.handlers.torchserve.archive import HANDLER_FILE, find_tool, pack
from paged_backend.handlers.torchserve.config_files import (
    base_url,
    inference_host,
    inference_port,
    management_url,
    write_host_files,
)
from paged_backend.handlers.torchserve.java import Java, find_java

STARTUP_ERROR_VARIABLE = "PAGED_BACKEND_STARTUP_ERROR_FILE"
"""Where a worker that cannot start writes why; without it TorchServe would retry for ever."""

DRAIN_SIGNAL = signal.SIGUSR1
"""Tells a worker to take no more requests and to end those that run: TorchServe has no word for it."""

STOP_TIMEOUT_S = 15.0
"""TorchServe takes about four seconds to stop; past this, it is killed."""

LAST_WORDS_S = 1.0
"""What a worker gets beyond its draining, for errors to reach the clients of what still ran."""

METRICS_TIMEOUT_S = 1.0
"""Longest wait for a worker's metrics while it drains."""

_BUSY = re.compile(r"^vllm:num_requests_(?:running|waiting)\{[^}]*\} ([0-9.e+]+)$", re.MULTILINE)


def serve(
    deployment: Deployment,
    *,
    export_path: Path | None = None,
    archive_format: str = "no-archive",
    handler_file: Path = HANDLER_FILE,
    on_ready: Callable[[str], None] | None = None,
    log: Callable[[str], None] = print,
) -> int:
    """Packs a deployment and serves it until SIGTERM, SIGINT or SIGHUP, or until TorchServe ends by itself.

    Call it from the main thread, as it takes over these signals meanwhile. The first signal lets running requests end
    for up to `server.drain_timeout_s`, and what is left then ends with an error; a second one stops at once.

    Args:
        export_path: TorchServe's model store; None means a temporary one.
        archive_format: "no-archive" or "mar".
        on_ready: called once with the base URL when requests can be served.
        log: takes lines for people.

    Returns:
        The exit status: 0 after a signal, else TorchServe's own (1 where that was 0, as nobody asked it to end).

    Raises:
        ConfigError: no Java, a port is taken, the archive cannot be made, or the worker cannot start.
    """
    java = find_java()
    _check_ports(deployment)
    with tempfile.TemporaryDirectory(prefix="paged-ts-") as scratch, StopSignals() as signals:
        run_folder = Path(scratch)
        model_store = export_path or run_folder / "model_store"
        archive = pack(deployment, model_store, archive_format, handler_file=handler_file)
        log(f"Packed {archive}; starting TorchServe on Java {java.version} ({java.source}).")
        with _Server(deployment, run_folder, archive, java) as server:
            if not _wait_ready(server, signals):
                return 0
            if on_ready is not None:
                on_ready(base_url(deployment))
            while not signals.count:
                status = server.wait(0.2)
                if status is not None:
                    log(f"TorchServe ended by itself with status {status}.")
                    return status or 1
            with contextlib.suppress(OSError):  # the terminal may be gone
                log("Stopping: running requests may end first.")
            server.drain(deployment.server.drain_timeout_s, give_up=lambda: signals.count > 1)
            return 0


class _Server:
    """TorchServe's processes: its Python starter, the Java server, and the Python worker.

    They get a session of their own, so that Ctrl-C in a terminal reaches only us, and we stop them in order.
    """

    def __init__(self, deployment: Deployment, run_folder: Path, archive: Path, java: Java) -> None:
        self._deployment = deployment
        self._run_folder = run_folder
        self._temp = run_folder / "tmp"
        self._temp.mkdir()
        self.startup_error_file = run_folder / "startup-error.txt"
        files = write_host_files(
            deployment,
            run_folder,
            model_store=archive.parent,
            grpc_ports=_free_ports(),
            java_version=java.version,
        )
        self._command = [
            find_tool("torchserve"),
            *("--start", "--foreground", "--ncs", "--disable-token-auth"),
            *("--ts-config", str(files.config_properties)),
            *("--log-config", str(files.log_config)),
            *("--model-store", str(archive.parent.resolve())),
            *("--models", archive.name),
        ]
        self._environment = self._make_environment(java)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> _Server:
        self._process = subprocess.Popen(
            self._command, env=self._environment, cwd=self._run_folder, start_new_session=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        """Asks Java to stop, then kills whatever of the session is left."""
        assert self._process is not None
        java_pid = self._java_pid()
        with contextlib.suppress(ProcessLookupError):
            if java_pid is not None:
                os.kill(java_pid, signal.SIGTERM)
                self.wait(STOP_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @property
    def deployment(self) -> Deployment:
        return self._deployment

    def wait(self, timeout_s: float) -> int | None:
        """Waits for TorchServe's end; its exit status, or None where it still runs."""
        assert self._process is not None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def workers(self) -> list[dict[str, Any]]:
        """TorchServe's own account of its workers; empty while it does not answer."""
        url = f"{management_url(self._deployment)}/models/{self._deployment.name}"
        try:
            with urllib.request.urlopen(url, timeout=5) as reply:
                models = json.load(reply)
        except (OSError, ValueError):
            return []
        return [worker for model in models for worker in model.get("workers", [])]

    def drain(self, timeout_s: float, give_up: Callable[[], bool]) -> None:
        """Lets the worker end its requests; returns when it has, shortly after timeout_s, or when told to."""
        pids = [worker["pid"] for worker in self.workers() if worker.get("status") == "READY"]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, DRAIN_SIGNAL)
        deadline_s = time.monotonic() + timeout_s + LAST_WORDS_S
        while pids and time.monotonic() < deadline_s and not give_up() and self._is_busy():
            time.sleep(0.1)
        if pids:
            # The last frames are on their way through Java.
            time.sleep(0.2)

    def _is_busy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{base_url(self._deployment)}/metrics", timeout=METRICS_TIMEOUT_S) as reply:
                text = reply.read().decode()
        except (urllib.error.HTTPError, TimeoutError):
            return True
        except OSError as error:
            # urllib wraps what comes before the reply's head: slow is busy, and only what is gone is idle.
            return isinstance(getattr(error, "reason", None), TimeoutError)
        return any(float(number) > 0 for number in _BUSY.findall(text))

    def _make_environment(self, java: Java) -> dict[str, str]:
        environment = server_environment(
            self._deployment,
            {
                "JAVA_HOME": str(java.home),
                # TorchServe's pid file, sockets and unpacked archives: one server per folder.
                "TMPDIR": str(self._temp),
                "TEMP": str(self._temp),
                STARTUP_ERROR_VARIABLE: str(self.startup_error_file),
            },
        )
        # It would take the place of the file that is given on the command line.
        environment.pop("TS_CONFIG_FILE", None)
        return environment

    def _java_pid(self) -> int | None:
        """From the file that the starter writes; None where it did not come so far."""
        try:
            return int((self._temp / ".model_server.pid").read_text())
        except (OSError, ValueError):
            return None


def _wait_ready(server: _Server, signals: StopSignals) -> bool:
    """Waits for a worker that is ready; False where a signal came first."""
    timeout_s = server.deployment.torchserve.startup_timeout_s
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if signals.count:
            return False
        if server.startup_error_file.exists():
            raise PagedBackendError(server.startup_error_file.read_text(encoding="utf-8"))
        if any(worker.get("status") == "READY" for worker in server.workers()):
            return True
        status = server.wait(0.1)
        if status is not None:
            raise ConfigError(f"TorchServe ended with status {status} while it started: see its log above.")
    raise ConfigError(
        f"TorchServe was not ready after {timeout_s} s: see its log above, or raise torchserve.startup_timeout_s."
    )


def _check_ports(deployment: Deployment) -> None:
    torchserve = deployment.torchserve
    check_free(inference_host(deployment), inference_port(deployment), setting="server.port")
    check_free("127.0.0.1", torchserve.management_port, setting="torchserve.management_port")
    check_free("127.0.0.1", torchserve.metrics_port, setting="torchserve.metrics_port")


def _free_ports() -> tuple[int, int]:
    """For TorchServe's gRPC servers, which cannot be turned off: nothing of ours uses them."""
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]
