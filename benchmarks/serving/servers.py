"""The hosts, started as a user starts them and stopped again."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

HOSTS = ("bentoml", "torchserve")

START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 60.0

_NAME = "bench"


@dataclass(frozen=True, slots=True)
class Server:
    """A host that can be asked.

    Attributes:
        base_url: the OpenAI routes, ending in /v1.
        model: the name to ask for.
        ready_s: how long its start took.
        pid: of the launcher, whose children serve.
    """

    host: str
    base_url: str
    model: str
    ready_s: float
    pid: int


@contextmanager
def running_host(host: str, model: str, engine_args: Mapping[str, Any]) -> Iterator[Server]:
    """`paged-backend serve` on free ports.

    Args:
        host: one of HOSTS.
        model: a folder, or "paged-tiny".
        engine_args: the engine's other arguments.

    Raises:
        SystemExit: it did not start; its own messages say why.
    """
    port, management_port, metrics_port = free_ports(3)
    settings = {"name": _NAME, "torchserve.management_port": management_port, "torchserve.metrics_port": metrics_port}
    settings |= {f"engine.{name}": value for name, value in engine_args.items()}
    command = [
        *(sys.executable, "-m", "paged_backend.handlers.cli", "serve", "--host", host),
        *("--model", model, "--port", str(port)),
        *(part for name, value in settings.items() for part in ("--set", f"{name}={value}")),
    ]
    start_s = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    impatient = threading.Timer(START_TIMEOUT_S, process.terminate)
    impatient.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Ready:"):
                break
        else:
            raise SystemExit(f"{host} did not start: its messages above say why.")
        impatient.cancel()
        # Nothing must ever block on a full pipe.
        threading.Thread(target=process.stdout.read, daemon=True).start()
        path = f"/predictions/{_NAME}/1.0/v1" if host == "torchserve" else "/v1"
        yield Server(host, f"http://127.0.0.1:{port}{path}", _NAME, time.perf_counter() - start_s, process.pid)
    finally:
        impatient.cancel()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    """TCP ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
