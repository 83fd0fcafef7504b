"""Children that end with the process that started them, whatever ends it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent(number: signal.Signals, parent_pid: int | None = None) -> None:
    """Linux sends this process a signal when the thread that started it ends, a SIGKILL of its process included.

    Called in the child, also between fork and exec. Elsewhere nothing happens: children must notice a pipe that closes.

    Args:
        number: the signal.
        parent_pid: who started it; if that one has ended already, the signal comes at once.
    """
    if _LIBC is None:
        return
    _LIBC.prctl(_PR_SET_PDEATHSIG, number)
    if parent_pid is not None and os.getppid() != parent_pid:
        os.kill(os.getpid(), number)
