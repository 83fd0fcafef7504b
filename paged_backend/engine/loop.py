"""The engine's thread: takes requests in, steps the core, hands over what they gain."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from paged_backend.engine.core import EngineCore
from paged_backend.engine.front_desk import SHUT_DOWN, Item
from paged_backend.engine.request import EngineRequest, RequestState
from paged_backend.engine.stats import EngineStats, KVMap
from paged_backend.errors import EngineUnavailableError, PagedBackendError, RequestFailedError

logger = logging.getLogger(__name__)


class Desk(Protocol):
    """Whom the thread reports to: `FrontDesk`, or the line to the process that has it."""

    def publish(self, stats: EngineStats, num_requests: int = 0, num_tokens: int = 0) -> None: ...

    def deliver(self, states: Sequence[RequestState]) -> None: ...

    def deliver_error(self, key: str, error: PagedBackendError) -> None: ...

    def answer(self, number: int, kv_map: KVMap) -> None: ...

    def close(self, reason: str, stats: EngineStats, ended: Sequence[RequestState]) -> None: ...


class EngineLoop:
    """Owns the core and the thread that runs it; the core belongs to the thread alone, which `start` begins."""

    def __init__(self, core: EngineCore) -> None:
        self._core = core
        self._changed = threading.Condition()
        self._inbox: deque[Item] = deque()
        self._stopping = False
        self._lost: str | None = None
        self._thread: threading.Thread | None = None

    def start(self, desk: Desk) -> None:
        """Begins to take items, and to report to a desk."""
        self._thread = threading.Thread(target=self._run, args=(desk,), name="paged-engine", daemon=True)
        self._thread.start()

    def send(self, item: Item) -> None:
        """Puts an item into the inbox. For any thread; never waits for a step."""
        with self._changed:
            self._inbox.append(item)
            self._changed.notify_all()

    def shutdown(self) -> None:
        """Ends what is left with EngineUnavailableError, and the thread. For any thread. Safe to call twice."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def lose(self, reason: str) -> None:
        """There is nothing left to compute with: the engine dies, at once if it has nothing to do."""
        with self._changed:
            self._lost = reason
            self._changed.notify_all()

    # -- the engine's thread

    def _run(self, desk: Desk) -> None:
        try:
            while self._take_inbox(desk):
                changed = self._core.step()
                desk.publish(self._core.stats())  # before readers learn of it: who asks then must see it
                desk.deliver(changed)
        except EngineUnavailableError as error:
            logger.error("the engine died: %s", error, exc_info=error.__cause__)
            reason = f"{error} The engine must be restarted."
        except Exception:
            logger.exception("the engine died")
            reason = "The engine has died of an internal error: it must be restarted."
        else:
            reason = SHUT_DOWN
        ended = self._core.end_all(reason)
        desk.close(reason, self._core.last_stats, ended)
        self._core.close(keep_cache=reason is SHUT_DOWN)

    def _take_inbox(self, desk: Desk) -> bool:
        """Waits for work, applies what came in; returns False when it is time to stop."""
        with self._changed:
            while not (self._inbox or self._stopping or self._lost is not None or self._core.has_work()):
                self._changed.wait()
            if self._stopping:
                return False
            if self._lost is not None:
                raise EngineUnavailableError(self._lost)
            if not self._inbox:
                return True
            inbox = list(self._inbox)
            self._inbox.clear()
        requests: list[EngineRequest] = []
        ended: list[RequestState] = []
        not_added: list[str] = []
        for item in inbox:
            if isinstance(item, str):
                ended.extend(self._core.abort(item))
            elif isinstance(item, int):
                desk.answer(item, self._core.kv_map())
            else:
                requests.append(item)
                if not self._add(item):
                    not_added.append(item.key)
        num_tokens = sum([len(request.prompt_token_ids) for request in requests])
        desk.publish(self._core.stats(), len(requests), num_tokens)
        desk.deliver(ended)
        for key in not_added:
            desk.deliver_error(key, RequestFailedError("The engine failed on this request."))
        return True

    def _add(self, request: EngineRequest) -> bool:
        try:
            self._core.add(request)
        except Exception:
            request_id = request.request_id
            logger.exception(
                "request %s could not be added; the others go on", request_id, extra={"request_id": request_id}
            )
            return False
        return True
