"""What every live test needs: free ports, waiting for something to become true, ending a process and its children."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import psutil


def free_ports(count: int) -> list[int]:
    """Distinct TCP ports that nobody listens on at 127.0.0.1; all are held open until all are known."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_until(question: Callable[[], bool], *, timeout_s: float, what: str, interval_s: float = 0.05) -> float:
    """Asks until the answer is yes.

    Args:
        question: must not change what it asks about; an OSError from it counts as a no.
        what: ends the sentence "timed out waiting for ...".

    Returns:
        The seconds that it took.

    Raises:
        TimeoutError: the answer was still no after timeout_s.
    """
    start = time.monotonic()
    while True:
        with contextlib.suppress(OSError):
            if question():
                return time.monotonic() - start
        if time.monotonic() - start > timeout_s:
            raise TimeoutError(f"timed out after {timeout_s} s waiting for {what}")
        time.sleep(interval_s)


def process_tree(pid: int) -> list[psutil.Process]:
    """A process and all its descendants, the process first; empty where it is gone."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill_tree(pid: int, *, grace_s: float = 10.0) -> None:
    """Ends a process and its descendants by their ids: SIGTERM to the root, SIGKILL to what is left after grace_s.

    The descendants are listed before the signal, since those of a dead parent cannot be found any more.
    """
    tree = process_tree(pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    _, alive = psutil.wait_procs(tree, timeout=grace_s)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5)


def read_tail(path: Path, num_lines: int = 60) -> str:
    """The last lines of a log, for a failure's message; empty where there is no such file."""
    if not path.exists():
        return ""
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-num_lines:])
