"""What the service does to its own process: stop with a bound, die where only a restart helps."""

from __future__ import annotations

import asyncio
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


def watch_signals(begin_stop: Callable[[], asyncio.Future[None]], *, drain_timeout_s: float) -> None:
    """Calls `begin_stop` on the event loop as soon as SIGTERM or SIGINT comes; uvicorn's handler gets the signal when
    that is done, or when the same one comes again.

    BentoML runs its shutdown hooks only after the last open connection has closed, which may be never. And uvicorn
    takes no more connections from the signal on, while its supervisor keeps the port open: whoever asks meanwhile, for
    its health too, would wait for nothing instead of hearing 503.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _StopHandler(signal.getsignal(number), begin_stop, loop, drain_timeout_s))


class _StopHandler:
    """Handles one signal; `before` is who handled it until now."""

    def __init__(
        self,
        before: Callable[[int, FrameType | None], object] | int | None,
        begin_stop: Callable[[], asyncio.Future[None]],
        loop: asyncio.AbstractEventLoop,
        drain_timeout_s: float,
    ) -> None:
        self._before = before
        self._begin_stop = begin_stop
        self._loop = loop
        self._drain_timeout_s = drain_timeout_s
        self._came = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        _exit_after(self._drain_timeout_s + STOP_GRACE_S)
        if self._came:
            self._pass_on(number)
            return
        self._came = True
        try:
            self._loop.call_soon_threadsafe(self._stop, number)
        except RuntimeError:  # the loop is closed: nothing is left to drain
            self._pass_on(number)

    def _stop(self, number: int) -> None:
        self._begin_stop().add_done_callback(lambda _: self._pass_on(number))

    def _pass_on(self, number: int) -> None:
        if callable(self._before):
            self._before(number, None)


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
