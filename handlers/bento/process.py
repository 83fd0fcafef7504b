"""What the service does to its own process: stop with a bound, die where only a restart helps."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

import bentoml

logger = logging.getLogger("bentoml.paged_backend")

LAST_WORDS_S = 1.0
"""What open streams get to carry their error before a lost engine's process ends."""

STOP_GRACE_S = 5.0
"""What a stopping process gets beyond its draining, before it is ended by force."""

ORPHAN_CHECK_S = 1.0

_EXIT_SOFTWARE = 70  # EX_SOFTWARE of sysexits.h


def is_supervised() -> bool:
    """Whether this is a worker of `bentoml serve`, whose supervisor starts another one when it ends."""
    return bentoml.server_context.worker_index is not None


def is_entry_service() -> bool:
    """Whether this process serves the public port, rather than another service's `depends`."""
    return bentoml.server_context.service_type != "service"


def end_worker(_reason: str) -> None:
    """Ends this worker shortly, by force, so that the supervisor starts a fresh one: a dead engine stays dead."""
    if not is_supervised():
        return
    logger.critical("This worker ends, so that another one takes over.")
    _exit_after(LAST_WORDS_S)


def end_server(_reason: str) -> None:
    """Ends the whole `bentoml serve` after a failed load: its supervisor would start failing workers for ever.

    A dependency of another service leaves the server alone: the other services may still be of use.
    """
    if not is_supervised():
        return
    if not is_entry_service():
        logger.critical("The engine stays unavailable until the server is restarted.")
        return
    logger.critical("The server ends.")
    os.kill(os.getppid(), signal.SIGTERM)
    _exit_after(STOP_GRACE_S)


def watch_signals(begin_stop: Callable[[], object], *, drain_timeout_s: float) -> None:
    """Calls `begin_stop` on the event loop as soon as SIGTERM or SIGINT comes; then goes on to uvicorn's handler.

    BentoML runs its shutdown hooks only after the last open connection has closed, which may be never.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)

        def handle(
            received: int,
            frame: FrameType | None,
            before: Callable[[int, FrameType | None], object] | int | None = before,
        ) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing is left to drain
                loop.call_soon_threadsafe(begin_stop)
            _exit_after(drain_timeout_s + STOP_GRACE_S)
            if callable(before):
                before(received, frame)

        signal.signal(number, handle)


async def watch_supervisor() -> None:
    """Ends the worker when its supervisor was killed: it would hold the port for ever."""
    supervisor = os.getppid()
    while is_supervised():
        await asyncio.sleep(ORPHAN_CHECK_S)
        if os.getppid() != supervisor:
            logger.critical("The supervisor is gone: this worker stops.")
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _exit_after(delay_s: float) -> None:
    timer = threading.Timer(delay_s, os._exit, (_EXIT_SOFTWARE,))
    timer.daemon = True
    timer.start()
