"""What both launchers share. (tests/serving drives them for real.)"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from paged_backend.errors import ConfigError
from paged_backend.handlers.deployment import Deployment
from paged_backend.handlers.launching import (
    StopSignals,
    check_free,
    curl_line,
    origin,
    ready_text,
    server_environment,
)
from tests.serving.processes import wait_until

URL = "http://127.0.0.1:3000"
SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def deployment(name: str = "tiny", **server: Any) -> Deployment:
    return Deployment.from_dict({"name": name, "server": server}, environ={})


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("0.0.0.0", "http://127.0.0.1:5"),
        ("::", "http://[::1]:5"),
        ("::1", "http://[::1]:5"),
        ("localhost", "http://localhost:5"),
    ],
)
def test_origin_can_be_called(host: str, expected: str) -> None:
    assert origin(host, 5) == expected


def test_port_that_is_taken_is_named_with_its_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port}: .*another torchserve\.metrics_port"):
            check_free("127.0.0.1", port, setting="torchserve.metrics_port")
    check_free("127.0.0.1", port, setting="server.port")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_stop_signals_are_counted_and_passed_on(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as signals, subprocess.Popen(SLEEP) as child:
        signals.forward_to(child)
        os.kill(os.getpid(), number)
        assert child.wait(timeout=10) == -signal.SIGTERM
        assert signals.count == 1
    assert signal.getsignal(number) is before


def test_signal_that_came_before_the_child_is_not_lost() -> None:
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGHUP)
        with subprocess.Popen(SLEEP) as child:
            signals.forward_to(child)
            assert child.wait(timeout=10) == -signal.SIGTERM


def test_nohup_is_respected() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.count == 0
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_child_dies_with_a_launcher_that_was_killed() -> None:
    code = (
        "import subprocess, sys, time\n"
        "from paged_backend.handlers.launching import die_with_launcher\n"
        f"child = subprocess.Popen({SLEEP!r}, preexec_fn=die_with_launcher)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        child = psutil.Process(int(launcher.stdout.readline()))
        launcher.kill()
        wait_until(
            lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, timeout_s=5, what="its end"
        )


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGED_BACKEND_API_KEY", "another")
    open_server = server_environment(deployment(), {"ADDED": "1"})
    assert "PAGED_BACKEND_API_KEY" not in open_server
    assert (open_server["ADDED"], open_server["PATH"]) == ("1", os.environ["PATH"])
    locked = server_environment(deployment(api_key="secret"), {})
    assert locked["PAGED_BACKEND_API_KEY"] == "key1:secret"
    for_two = server_environment(deployment(api_key=["one", "two"]), {})
    assert for_two["PAGED_BACKEND_API_KEY"] == "key1:one key2:two"


def test_curl_line_survives_the_shell() -> None:
    one = Deployment.from_dict({"name": "tiny", "engine": {"served_model_name": "it's $mine"}}, environ={})
    echo = curl_line(one, URL).replace("curl ", "printf '%s\\n' ", 1)
    words = subprocess.run(["bash", "-c", echo], capture_output=True, text=True, check=True).stdout.splitlines()
    assert words[0] == f"{URL}/v1/chat/completions"
    assert json.loads(words[-1])["model"] == "it's $mine"
    assert shlex.split(curl_line(one, URL))[0] == "curl"


def test_key_is_taken_from_the_environment_and_said_so() -> None:
    text = ready_text(deployment(api_key="secret"), "TorchServe at X", URL)
    assert "secret" not in text
    assert '"Authorization: Bearer $PAGED_BACKEND_API_KEY"' in text
    assert "export PAGED_BACKEND_API_KEY" in text
    assert "export" not in ready_text(deployment(), "TorchServe at X", URL)
