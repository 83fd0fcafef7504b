"""`paged-backend serve` in a terminal: what is left of either host when that goes away."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import subprocess
import sys
import termios
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.serving.processes import free_ports, kill_tree, process_tree
from tests.serving.torchserve_host import TEST_MODEL

MAIN = "from paged_backend.handlers.cli import main; main()"
READY_TIMEOUT_S = 120.0


def take_terminal() -> None:
    """Makes standard input the terminal of a new session, as a terminal's window does for its shell."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def read_until_ready(terminal: int) -> None:
    """Reads what the launcher says up to its line for pasting."""
    seen = b""
    end_s = time.monotonic() + READY_TIMEOUT_S
    while b"curl " not in seen:
        assert time.monotonic() < end_s, seen.decode()
        try:
            seen += os.read(terminal, 4096)
        except OSError:
            raise AssertionError(f"the launcher has ended:\n{seen.decode()}") from None


@pytest.mark.parametrize(
    ("host", "end"),
    [("bentoml", "closed"), ("torchserve", "closed"), ("bentoml", "killed")],
)
def test_nothing_outlives_the_terminal(tmp_path: Path, host: str, end: str) -> None:
    port, management_port, metrics_port = free_ports(3)
    config = {
        "name": "paged-tiny",
        "engine": {"model": TEST_MODEL, "num_threads": 1},
        "server": {"port": port, "drain_timeout_s": 1},
        "torchserve": {"management_port": management_port, "metrics_port": metrics_port},
    }
    file = tmp_path / "deployment.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    terminal, inside = pty.openpty()
    launcher = subprocess.Popen(
        [sys.executable, "-c", MAIN, "serve", "--config", str(file), "--host", host],
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
        preexec_fn=take_terminal,
    )
    os.close(inside)
    tree: list[psutil.Process] = []
    try:
        read_until_ready(terminal)
        tree = process_tree(launcher.pid)
        assert len(tree) > 1
        if end == "killed":
            launcher.kill()
        else:
            os.close(terminal)
        launcher.wait(timeout=30)
        _, alive = psutil.wait_procs(tree, timeout=15)
        assert not alive
    finally:
        if end == "killed":
            os.close(terminal)
        kill_tree(launcher.pid)
        launcher.wait(timeout=10)
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
