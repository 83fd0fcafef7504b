"""The engines' life inside an event loop: starting, ready, failed, draining, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from paged_backend.errors import EngineUnavailableError, PagedBackendError
from paged_backend.handlers.deployment import Deployment
from paged_backend.handlers.loading import load_engines

if TYPE_CHECKING:
    from paged_backend.handlers.engine_group import EngineGroup
    from paged_backend.handlers.openai.service import OpenAIService

logger = logging.getLogger("bentoml.paged_backend")

Engines = tuple["EngineGroup", "OpenAIService"]
T = TypeVar("T")

WATCH_INTERVAL_S = 0.5


class EngineRuntime:
    """Owns the engines of one process. Everything but the loading itself runs on the event loop's thread.

    Args:
        deployment: what to serve.
        load: blocking; gives the engines and the OpenAI service.
        on_load_failed: called once, with the reason, when loading failed; the runtime stays failed.
        on_engine_lost: called once, with the reason, when an engine that was ready died or got stuck.
    """

    def __init__(
        self,
        deployment: Deployment,
        *,
        load: Callable[[Deployment], Engines] = load_engines,
        on_load_failed: Callable[[str], None] | None = None,
        on_engine_lost: Callable[[str], None] | None = None,
    ) -> None:
        self.deployment = deployment
        self._load = load
        self._on_load_failed = on_load_failed
        self._on_engine_lost = on_engine_lost
        self._engines: Engines | None = None
        self._reason = "The engine is not started."
        self._failed = False
        self._starting: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None

    @property
    def engines(self) -> EngineGroup:
        """The engines.

        Raises:
            EngineUnavailableError: they are starting, failed to load, or are stopped.
        """
        return self._loaded()[0]

    @property
    def openai(self) -> OpenAIService:
        """The OpenAI service over them; raises as `engines` does."""
        return self._loaded()[1]

    @property
    def failed(self) -> bool:
        """Whether nothing but a restart of the process can help: loading failed, or the engine was lost."""
        return self._failed

    def check_ready(self) -> None:
        """Raises EngineUnavailableError, with the reason, unless requests can be served now."""
        engines = self.engines
        if self._failed or self._stopping is not None:
            raise EngineUnavailableError(self._reason)
        engines.check_health(self.deployment.server.stall_timeout_s)

    def start(self) -> asyncio.Task[None]:
        """Begins to load, once; the task ends when loading has ended, well or not."""
        if self._starting is None:
            self._reason = "The engine is starting."
            self._starting = asyncio.ensure_future(self._start())
        return self._starting

    async def ensure_started(self) -> None:
        """Starts where nobody did (BentoML runs no startup hooks for in-process dependencies) and waits for the end.

        Raises:
            EngineUnavailableError: loading failed.
        """
        await asyncio.shield(self.start())
        self._loaded()

    def begin_stop(self) -> asyncio.Task[None]:
        """Begins to drain, once: no new requests; what still runs after drain_timeout_s ends with an error."""
        if self._stopping is None:
            self._reason = "The server is draining: it takes no more requests."
            self._stopping = asyncio.ensure_future(self._stop())
        return self._stopping

    async def stop(self) -> None:
        """Drains and stops the engine."""
        await asyncio.shield(self.begin_stop())

    def _loaded(self) -> Engines:
        if self._engines is None:
            raise EngineUnavailableError(self._reason)
        return self._engines

    async def _start(self) -> None:
        try:
            engines = await _in_daemon_thread(lambda: self._load(self.deployment), "paged-backend-load")
        except PagedBackendError as error:
            self._fail_to_load(str(error))
        except Exception:
            # A bug of ours or of a library.
            logger.exception("Loading the engine failed.")
            self._fail_to_load("an internal error.")
        else:
            if self._stopping is not None:
                await _in_daemon_thread(engines[0].shutdown, "paged-backend-stop")
                return
            self._engines = engines
            self._watching = asyncio.ensure_future(self._watch(engines[0]))
            logger.info("The engine is ready: serving %s.", ", ".join(self.deployment.model_names))

    def _fail_to_load(self, reason: str) -> None:
        self._failed = True
        # Clients of /health, which asks for no key, learn nothing of folders and files.
        self._reason = "The engine could not be loaded: the server's log says why."
        logger.error("The engine could not be loaded: %s", reason)
        if self._on_load_failed is not None:
            self._on_load_failed(reason)

    async def _watch(self, engines: EngineGroup) -> None:
        """Notices an engine that died or got stuck, also when nobody sends requests or asks for its health."""
        while self._stopping is None:
            await asyncio.sleep(WATCH_INTERVAL_S)
            try:
                engines.check_health(self.deployment.server.stall_timeout_s)
            except EngineUnavailableError as error:
                if self._stopping is not None:
                    return
                self._failed = True
                self._reason = str(error)
                logger.critical("The engine is lost: %s", error)
                engines.give_up(self._reason)
                if self._on_engine_lost is not None:
                    self._on_engine_lost(self._reason)
                return

    async def _stop(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        if self._engines is None:
            return
        engines = self._engines[0]
        timeout_s = self.deployment.server.drain_timeout_s
        ended = await _in_daemon_thread(lambda: engines.drain(timeout_s), "paged-backend-drain")
        if not ended:
            logger.warning("Requests still ran after %g s of draining: they end with an error.", timeout_s)
        await _in_daemon_thread(engines.shutdown, "paged-backend-stop")


def _in_daemon_thread(function: Callable[[], T], name: str) -> asyncio.Future[T]:
    """Runs a blocking function in a thread of its own.

    Unlike the loop's executor, such a thread does not hold up the process's end: loading may take minutes.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failure = None, None
        try:
            result = function()
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
