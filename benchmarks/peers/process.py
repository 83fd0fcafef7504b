"""A runner's process: in its own group, with a limit of time."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence

from benchmarks.peers.tools import ROOT


def run_process(command: Sequence[str], timeout_s: float) -> None:
    """Runs a command in the repository's folder to its end; when it takes too long, its children are killed with it.

    Raises:
        RuntimeError: it failed, and how its output ends, or it was not done in time.
    """
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        said, _ = process.communicate(timeout=timeout_s)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)  # with the runner's own children: llama.cpp's server
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise RuntimeError(f"not done after {timeout_s:.0f} s") from None
        raise
    if process.returncode != 0:
        raise RuntimeError(f"exit status {process.returncode}; the end of what it said:\n{said[-3000:]}")
