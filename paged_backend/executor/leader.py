"""The first rank: starts the processes of the others, tells them what to do, and sees when one of them is gone."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paged_backend.child_process import spawn
from paged_backend.config import EngineConfig
from paged_backend.errors import EngineUnavailableError, PagedBackendError
from paged_backend.executor.collectives import RankExchange
from paged_backend.executor.ranks import Ranks, shard_of
from paged_backend.executor.step_work import StepWork

logger = logging.getLogger(__name__)

_CHILD = "paged_backend.executor.rank"
_STOP_TIMEOUT_S = 5.0
"""What a rank may take to end by itself; then it is killed."""

_NOTICE_TIMEOUT_S = 0.5
"""What it may take to learn that a process is over, after its peers have learned of it."""


def start_ranks(config: EngineConfig) -> Ranks:
    """Starts the others that a configuration asks for."""
    return Ranks() if config.executor.tensor_parallel_size == 1 else Leader(config)


class Leader(Ranks):
    """Rank 0 of several, with the others as its children. They end when it does, whatever ends it.

    When one of them is lost, the step that is computed fails with EngineUnavailableError, and so do all after it: the
    others have a part of the model only.

    Args:
        config: what the children load by; it says how many.
    """

    def __init__(self, config: EngineConfig) -> None:
        """Starts the children.

        Raises:
            EngineUnavailableError: one of them has ended; the others have, then, too.
        """
        size = config.executor.tensor_parallel_size
        self._exchange = RankExchange(0, size)
        self.shard = shard_of(self._exchange)
        self._lock = threading.Lock()
        self._lost: str | None = None
        self._on_lost: Callable[[str], None] | None = None
        self._closing = False
        self._is_ready = False
        self._meeting = _Meeting()
        self._children = [_Child(rank, self._note_end) for rank in range(1, size)]
        for child in self._children:
            child.start()
        with self.loading():
            for child in self._children:
                self._send(child, config.to_args())

    @contextmanager
    def loading(self) -> Iterator[None]:
        """See `Ranks`."""
        with super().loading():
            try:
                yield
            except PagedBackendError:
                raise
            except Exception as error:  # maybe in an exchange to which a rank did not come
                for refusal in [child.refusal() for child in self._children]:
                    if refusal is not None:
                        raise refusal from error
                raise

    def agree(self, num_blocks: int) -> int:
        """See `Ranks`."""
        agreed: int = min(num_blocks, *(self._receive(child) for child in self._children))
        for child in self._children:
            self._send(child, agreed)
        return agreed

    def connect(self, device: torch.device) -> None:
        """See `Ranks`."""
        for child in self._children:
            self._receive(child)
        for child in self._children:
            self._send(child, self._meeting.path)
        with self.together():
            self._exchange.connect(self._meeting.path, device)

    def wait_ready(self) -> None:
        """See `Ranks`."""
        for child in self._children:
            self._receive(child)
        self._is_ready = True

    def begin(self, work: StepWork) -> None:
        """See `Ranks`."""
        data = work.to_bytes()
        for child in self._children:
            try:
                child.connection.send_bytes(data)
            except OSError:
                raise EngineUnavailableError(self._lose(self._how_ended(child))) from None

    def share(self, x: Tensor) -> None:
        """See `Ranks`."""
        self._exchange.gathered(x)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around the part of a step that every rank does.

        Raises:
            EngineUnavailableError: it failed here or in another rank: they are not at the same place any more.
        """
        if self._lost is not None:
            raise EngineUnavailableError(self._lost)
        try:
            yield
        except Exception as error:
            for child in self._children:
                child.join(_NOTICE_TIMEOUT_S)  # if one has ended, that is the reason
            reason = self._lose(f"Rank 0 of {self.shard.size} failed ({type(error).__name__}).", error)
            raise EngineUnavailableError(reason) from error

    def on_lost(self, call: Callable[[str], None]) -> None:
        """See `Ranks`."""
        with self._lock:
            self._on_lost = call
            lost = self._lost
        if lost is not None:
            call(lost)

    def close(self) -> None:
        """See `Ranks`."""
        self._closing = True
        for child in self._children:
            if self._is_ready:
                child.ask_to_end()
            else:
                child.kill()  # it loads, and listens to nobody
        for child in self._children:
            child.wait()
        self._exchange.abort()
        self._meeting.close()

    def _send(self, child: _Child, message: object) -> None:
        try:
            child.connection.send(message)
        except OSError:
            raise self._failed(child) from None

    def _receive(self, child: _Child) -> Any:
        """What a child says while it loads.

        Raises:
            PagedBackendError: what kept it from that.
        """
        try:
            message = child.connection.recv()
        except (EOFError, OSError):
            raise self._failed(child) from None
        if isinstance(message, Exception):
            raise message
        return message

    def _failed(self, child: _Child) -> EngineUnavailableError:
        return EngineUnavailableError(
            f"{self._how_ended(child)} After SIGKILL, look whether the machine has memory enough."
        )

    def _how_ended(self, child: _Child) -> str:
        return f"Rank {child.rank} of {self.shard.size} ended{child.how()}."

    def _note_end(self, child: _Child) -> None:
        """A child's thread: its process is over."""
        if not self._closing:
            self._lose(self._how_ended(child))

    def _lose(self, reason: str, error: Exception | None = None) -> str:
        """Notes that there is no model any more; the first reason stays."""
        with self._lock:
            if self._lost is not None:
                return self._lost
            self._lost = reason
            call = self._on_lost
        logger.error("%s The engine ends.", reason, exc_info=error)
        self._exchange.abort()  # a peer may wait for what never comes
        if call is not None:
            call(reason)
        return reason


class _Meeting:
    """A file by which the ranks find each other. Nobody else can reach it, and on Linux it is gone when this process
    is, whatever ends that.

    Attributes:
        path: for all ranks.
        close: ends it.
    """

    path: Path
    close: Callable[[], None]

    def __init__(self) -> None:
        if sys.platform == "linux":
            file = os.fdopen(os.memfd_create("paged-backend-ranks"))
            self.path, self.close = Path(f"/proc/{os.getpid()}/fd/{file.fileno()}"), file.close
        else:
            folder = tempfile.TemporaryDirectory(prefix="paged-backend-ranks-")
            self.path, self.close = Path(folder.name, "store"), folder.cleanup


class _Child:
    """One rank's process, with a thread that starts it, and waits for its end.

    On Linux a child that asks for a signal at its parent's end gets it at the end of the thread that it came from: so
    that thread must live as long.
    """

    def __init__(self, rank: int, on_end: Callable[[_Child], None]) -> None:
        ours, self._theirs = socket.socketpair()
        self.rank = rank
        self.connection: Connection[Any, Any] = Connection(ours.detach())
        self._on_end = on_end
        self._process: subprocess.Popen[bytes] | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"paged-rank-{rank}", daemon=True)

    def start(self) -> None:
        """Begins to start it."""
        self._thread.start()

    def ask_to_end(self) -> None:
        """Tells it that there is nothing more to do."""
        with contextlib.suppress(OSError):
            self.connection.send_bytes(b"")

    def refusal(self) -> Exception | None:
        """What it has said last, if that is why it cannot load."""
        message: object = None
        with contextlib.suppress(EOFError, OSError):
            while self.connection.poll(_NOTICE_TIMEOUT_S):
                message = self.connection.recv()
        return message if isinstance(message, Exception) else None

    def kill(self) -> None:
        """Ends it at once."""
        self._started.wait()
        if self._process is not None:
            self._process.kill()

    def wait(self) -> None:
        """Until it has ended; it is made to."""
        self.join(_STOP_TIMEOUT_S)
        if self._thread.is_alive():
            self.kill()
        self._thread.join()
        self.connection.close()

    def join(self, timeout_s: float) -> None:
        """Waits for its end, and for who is told of it."""
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def how(self) -> str:
        """In which way it ended, as far as is known."""
        self.join(_NOTICE_TIMEOUT_S)
        if self._process is None:
            return " (it could not be started)"
        code = self._process.poll()
        if code is None:
            return ""
        return f" ({signal.Signals(-code).name})" if code < 0 else f" (exit code {code})"

    def _run(self) -> None:
        try:
            self._process = spawn(_CHILD, self._theirs, self.rank, prints=False)
        except OSError:
            logger.exception("the process of rank %d cannot be started", self.rank)
        self._started.set()
        if self._process is not None:
            self._process.wait()
        self._on_end(self)
