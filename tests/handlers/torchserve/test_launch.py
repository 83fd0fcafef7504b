"""The launcher's eye on a worker that drains. (tests/serving drives the launcher for real.)"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from paged_backend.errors import ConfigError
from paged_backend.handlers.deployment import Deployment
from paged_backend.handlers.torchserve import launch
from paged_backend.handlers.torchserve.java import Java

OK = b"HTTP/1.0 200 OK\r\n\r\n"
RUNNING = b'vllm:num_requests_running{model_name="tiny"} 1.0\n'
IDLE = b'vllm:num_requests_running{model_name="tiny"} 0.0\n'


@contextmanager
def answering(answer: bytes, *, then_hang: bool) -> Iterator[int]:
    """A server that gives each connection these bytes; yields its port."""
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(answer)
                if then_hang:
                    done.wait(30)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        done.set()
        thread.join()


def make(folder: Path, monkeypatch: pytest.MonkeyPatch, port: int) -> launch._Server:
    monkeypatch.setattr(launch, "METRICS_TIMEOUT_S", 0.2)
    deployment = Deployment.from_dict({"name": "tiny", "server": {"port": port}}, environ={})
    return launch._Server(deployment, folder, folder / "tiny.mar", Java(Path("/java"), 17, "test"))


@pytest.mark.parametrize(
    ("answer", "then_hang", "busy"),
    [
        (OK + RUNNING, False, True),
        (OK + IDLE, False, False),
        (b"HTTP/1.0 503 Busy\r\n\r\n", False, True),
        (b"", True, True),
        (OK + IDLE, True, True),
    ],
    ids=["running", "idle", "refused", "no reply in time", "no end in time"],
)
def test_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes, then_hang: bool, busy: bool) -> None:
    with answering(answer, then_hang=then_hang) as port:
        assert make(tmp_path, monkeypatch, port)._is_busy() is busy


def test_what_is_gone_is_not_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert make(tmp_path, monkeypatch, port)._is_busy() is False


def test_ipv6_is_refused_before_anything_is_started() -> None:
    deployment = Deployment.from_dict({"name": "tiny", "server": {"host": "::1"}}, environ={})
    with pytest.raises(ConfigError, match=r"server\.host must be an IPv4 address"):
        launch.serve(deployment)
