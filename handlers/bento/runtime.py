"""One engine's life inside an event loop: starting, ready, failed, draining, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from paged_backend.errors import EngineUnavailableError, PagedBackendError
from paged_backend.handlers.deployment import Deployment
from paged_backend.handlers.loading import load_engine

if TYPE_CHECKING:
    from paged_backend.engine.client import EngineClient
    from paged_backend.handlers.openai.service import OpenAIService

logger = logging.getLogger("bentoml.paged_backend")

Engine = tuple["EngineClient", "OpenAIService"]
T = TypeVar("T")

WATCH_INTERVAL_S = 0.5


class EngineRuntime:
    """Owns the engine of one process. Everything but the loading itself runs on the event loop's thread.

    Args:
        deployment: what to serve.
        load: blocking; gives the engine's client and the OpenAI service.
        on_load_failed: called once, with the reason, when loading failed; the runtime stays failed.
        on_engine_lost: called once, with the reason, when an engine that was ready died or got stuck.
    """

    def __init__(
        self,
        deployment: Deployment,
        *,
        load: Callable[[Deployment], Engine] = load_engine,
        on_load_failed: Callable[[str], None] | None = None,
        on_engine_lost: Callable[[str], None] | None = None,
    ) -> None:
        self.deployment = deployment
        self._load = load
        self._on_load_failed = on_load_failed
        self._on_engine_lost = on_engine_lost
        self._engine: Engine | None = None
        self._reason = "The engine is not started."
        self._failed = False
        self._starting: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None

    @property
    def client(self) -> EngineClient:
        """The engine's client.

        Raises:
            EngineUnavailableError: the engine is starting, failed to load, or is stopped.
        """
        return self._loaded()[0]

    @property
    def openai(self) -> OpenAIService:
        """The OpenAI service over the engine; raises as `client` does."""
        return self._loaded()[1]

    @property
    def failed(self) -> bool:
        """Whether nothing but a restart of the process can help: loading failed, or the engine was lost."""
        return self._failed

    def check_ready(self) -> None:
        """Raises EngineUnavailableError, with the reason, unless requests can be served now."""
        client = self.client
        if self._failed or self._stopping is not None:
            raise EngineUnavailableError(self._reason)
        client.check_health(self.deployment.server.stall_timeout_s)

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
            self._reason = "The server is shutting down."
            self._stopping = asyncio.ensure_future(self._stop())
        return self._stopping

    async def stop(self) -> None:
        """Drains and stops the engine."""
        await asyncio.shield(self.begin_stop())

    def _loaded(self) -> Engine:
        if self._engine is None:
            raise EngineUnavailableError(self._reason)
        return self._engine

    async def _start(self) -> None:
        try:
            engine = await _in_daemon_thread(lambda: self._load(self.deployment), "paged-backend-load")
        except PagedBackendError as error:
            self._fail_to_load(str(error))
        except Exception:
            # A bug of ours or of a library: the log has it, clients of /health learn no internals.
            logger.exception("Loading the engine failed.")
            self._fail_to_load("an internal error; the server's log has the details.")
        else:
            if self._stopping is not None:
                await _in_daemon_thread(engine[0].shutdown, "paged-backend-stop")
                return
            self._engine = engine
            self._watching = asyncio.ensure_future(self._watch(engine[0]))
            logger.info("The engine is ready: serving %s.", ", ".join(self.deployment.model_names))

    def _fail_to_load(self, reason: str) -> None:
        self._failed = True
        self._reason = f"The engine could not be loaded: {reason}"
        logger.error("%s", self._reason)
        if self._on_load_failed is not None:
            self._on_load_failed(self._reason)

    async def _watch(self, client: EngineClient) -> None:
        """Notices an engine that died or got stuck, also when nobody sends requests or asks for its health."""
        while self._stopping is None:
            await asyncio.sleep(WATCH_INTERVAL_S)
            try:
                client.check_health(self.deployment.server.stall_timeout_s)
            except EngineUnavailableError as error:
                if self._stopping is not None:
                    return
                self._failed = True
                self._reason = str(error)
                logger.critical("The engine is lost: %s", error)
                if self._on_engine_lost is not None:
                    self._on_engine_lost(self._reason)
                return

    async def _stop(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        if self._engine is None:
            return
        client = self._engine[0]
        timeout_s = self.deployment.server.drain_timeout_s
        ended = await _in_daemon_thread(lambda: client.drain(timeout_s), "paged-backend-drain")
        if not ended:
            logger.warning("Requests still ran after %g s of draining: they end with an error.", timeout_s)
        await _in_daemon_thread(client.shutdown, "paged-backend-stop")


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
