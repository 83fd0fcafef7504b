"""Children: Python processes started anew, that end with the one that started them, whatever ends it."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import socket
import subprocess
import sys

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent(number: int, parent_pid: int | None = None) -> None:
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


def spawn(module: str, theirs: socket.socket, *arguments: int, prints: bool = True) -> subprocess.Popen[bytes]:
    """Starts a process that runs the `main` of a module, with the modules' search path of this one. On Linux it gets
    SIGKILL when the calling thread ends, also while it still imports; elsewhere it must notice the socket's end.

    It is no fork: one of a process with threads may hang on any lock that one of them held.

    Args:
        theirs: the socket's end that it talks through; closed here, started or not. `main` is given its descriptor and
            the arguments.
        prints: let it write to standard output.

    Raises:
        OSError: it cannot be started.
    """
    with theirs:
        script = (
            f"import sys; sys.path[:] = {[str(path) for path in sys.path]!r}; "
            f"from {__name__} import die_with_parent; die_with_parent({int(signal.SIGKILL)}, {os.getpid()}); "
            f"from {module} import main; main(*{(theirs.fileno(), *arguments)!r})"
        )
        return subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=None if prints else subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )


def sendable(error: Exception) -> Exception:
    """The error, or, where another process could not make it again, its words."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
