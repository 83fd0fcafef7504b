"""Decides when a worker must die, so that TorchServe starts another: nothing else restarts an engine.

TorchServe's own timeout sees only a call of the handler that hangs. An engine that is stuck, or dead, behind a
handler that still answers is seen here.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Protocol

from paged_backend.errors import EngineUnavailableError

logger = logging.getLogger(__name__)

CHECK_EVERY_S = 1.0

LAST_WORDS_S = 1.0
"""How long an engine may be ill before its requests are given up, and how long these then get to carry their errors to
the clients."""


class EngineVitals(Protocol):
    """What is asked of `EngineGroup`."""

    def check_health(self, stall_timeout_s: float | None = None) -> None:
        """Raises EngineUnavailableError: dead, draining, or no step for so long while there is work."""
        ...

    def give_up(self, reason: str) -> None:
        """Ends every request with EngineUnavailableError."""
        ...


class Vitals:
    """Called by the pump's watchdog; ends the process when the engine or the host is lost."""

    def __init__(
        self,
        engine: EngineVitals,
        *,
        stall_timeout_s: float,
        num_live: Callable[[], int],
        is_draining: Callable[[], bool],
        end_process: Callable[[int], None] = os._exit,
        clock_s: Callable[[], float] = time.monotonic,
        parent_pid: Callable[[], int] = os.getppid,
    ) -> None:
        self._engine = engine
        self._stall_timeout_s = stall_timeout_s
        self._num_live = num_live
        self._is_draining = is_draining
        self._end_process = end_process
        self._clock_s = clock_s
        self._parent_pid = parent_pid
        self._parent_at_start = parent_pid()
        self._next_check_s = clock_s()
        self._ill_since_s: float | None = None

    def tick(self) -> None:
        """Looks at the host each time, at the engine about once a second."""
        if self._parent_pid() != self._parent_at_start:
            # TorchServe was killed. A worker without it holds memory and can be reached by nobody.
            self._end("TorchServe is gone.")
            return
        now_s = self._clock_s()
        if now_s < self._next_check_s:
            return
        self._next_check_s = now_s + (CHECK_EVERY_S if self._ill_since_s is None else 0.0)
        try:
            self._engine.check_health(self._stall_timeout_s)
        except EngineUnavailableError as error:
            if self._is_draining():
                return
            if self._ill_since_s is None:
                self._ill_since_s = now_s
                self._next_check_s = now_s
            ill_s = now_s - self._ill_since_s
            if self._num_live() == 0 or ill_s >= 2 * LAST_WORDS_S:
                self._end(str(error))
            elif ill_s >= LAST_WORDS_S:
                self._engine.give_up(str(error))  # a dead one has told them; one that is stuck tells nothing
        else:
            self._ill_since_s = None

    def _end(self, reason: str) -> None:
        logger.error("The worker ends itself, for TorchServe to start another: %s", reason)
        self._end_process(1)
