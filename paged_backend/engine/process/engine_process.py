"""An engine in a process of its own, as callers of this one see it."""

from __future__ import annotations

import logging
import pickle
import queue
import signal
import socket
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import Any

from paged_backend.child_process import spawn
from paged_backend.config import EngineConfig
from paged_backend.engine.engine_thread import new_metrics
from paged_backend.engine.facts import EngineFacts
from paged_backend.engine.front_desk import FrontDesk, Item
from paged_backend.engine.loading import load_tokenizer
from paged_backend.engine.metrics import EngineMetrics
from paged_backend.engine.pace import Pace
from paged_backend.engine.process.messages import (
    Abort,
    Add,
    Answer,
    AskMap,
    Ended,
    Failed,
    Gained,
    Log,
    Ready,
    Refused,
    Start,
    Step,
    Stop,
)
from paged_backend.engine.process.observations import replay
from paged_backend.engine.request import EngineRequest, Gain, PromptFacts
from paged_backend.engine.stats import EngineStats
from paged_backend.engine.tokenizer import Tokenizer
from paged_backend.errors import ModelLoadError, PagedBackendError, RequestFailedError
from paged_backend.outputs import RequestStateStats

logger = logging.getLogger(__name__)

_STOP_TIMEOUT_S = 30.0
"""What a clean end may take: the step that is being computed, and writing the cache and the last traces. Then the
process is killed."""

_EXIT_TIMEOUT_S = 5.0
"""What it may take from its last word to its end."""

_LOGGERS = ("", "paged_backend")
"""Whose levels the process takes over; what it logs is written by the handlers here."""

_CHILD = "paged_backend.engine.process.child"


class EngineProcess:
    """Starts the process, sends it items, and reads what comes back.

    One thread starts it, reads, and sees its end: on Linux a child that asks for a signal at its parent's end gets it
    at the end of the thread that it came from. Another writes: whoever sends must not wait for a process that hangs.

    Attributes:
        facts: of what was loaded.
        metrics: what is told of its work; they are kept here, where they are asked for.
        desk: where requests are let in.
        pid: the process's id.
    """

    facts: EngineFacts
    metrics: EngineMetrics
    desk: FrontDesk
    pid: int

    def __init__(self, config: EngineConfig) -> None:
        """Starts the process, which begins to load; `wait_ready` must follow."""
        self._config = config
        self._pace = Pace()
        self._stats = EngineStats()
        self._live: dict[int, _LiveRequest] = {}  # by number
        self._num_sent = 0
        self._outbox: queue.SimpleQueue[object] = queue.SimpleQueue()  # messages; None after the last
        self._ready: Future[None] = Future()
        self._has_ended = False  # by its own account
        self._process: subprocess.Popen[bytes] | None = None
        self._is_unwanted = False
        self._writer: threading.Thread | None = None
        self._outbox.put(Start(config, {name: logging.getLogger(name).level for name in _LOGGERS}))
        self._thread = threading.Thread(target=self._run, name="paged-engine-reader", daemon=True)
        self._thread.start()

    @classmethod
    def start(cls, config: EngineConfig) -> tuple[EngineProcess, Tokenizer | None]:
        """Loads the model there and the tokenizer here, too; blocks until requests can be let in.

        Raises:
            ConfigError, ModelLoadError: with what to change.
        """
        engine = cls(config)
        try:
            tokenizer = load_tokenizer(config)
        except BaseException as error:
            if isinstance(error, Exception):
                engine.wait_ready()  # what keeps that one from loading is said first, as by an engine in a thread
            engine.shutdown()
            raise
        engine.wait_ready()
        return engine, tokenizer

    def wait_ready(self) -> None:
        """Blocks until requests can be let in.

        Raises:
            ConfigError, ModelLoadError: with what to change.
        """
        try:
            self._ready.result()
        except BaseException:  # an interrupt, too
            self.shutdown()
            raise

    def shutdown(self) -> None:
        """Ends what is left with EngineUnavailableError, and the process. Safe to call twice."""
        if self._ready.done() and self._ready.exception() is None:
            self.desk.stop()
            self._outbox.put(Stop())
        else:  # it loads, and listens to nobody
            self._kill()
        if threading.current_thread() in (self._thread, self._writer):
            return
        self._thread.join(_STOP_TIMEOUT_S)
        if self._thread.is_alive():
            logger.error("The engine's process does not end within %g s: it is killed.", _STOP_TIMEOUT_S)
            self._kill()
            self._thread.join()

    def _send(self, item: Item) -> None:
        """For the desk, which holds its lock meanwhile."""
        if isinstance(item, EngineRequest):
            self._num_sent += 1
            # Known here before any answer can come.
            live = self._live[self._num_sent] = _LiveRequest(self._num_sent, item)
            self._outbox.put(live)
        else:
            self._outbox.put(Abort(item) if isinstance(item, str) else AskMap(item))

    def _kill(self) -> None:
        self._is_unwanted = True
        if self._process is not None:
            self._process.kill()

    # -- the thread that writes

    def _write(self, connection: Connection[Any, Any]) -> None:
        while (message := self._outbox.get()) is not None:
            if isinstance(message, _LiveRequest):
                message = Add(message.number, message.request.key, _pickled(message.request))
            try:
                connection.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))
            except OSError:  # nobody is there any more, which the other thread sees, too
                return

    # -- the thread that reads

    def _run(self) -> None:
        try:
            process, connection = self._spawn()
        except OSError as error:
            self._ready.set_exception(ModelLoadError(f"The engine's process cannot be started: {error}."))
            return
        self._writer = threading.Thread(target=self._write, args=(connection,), name="paged-engine-writer", daemon=True)
        self._writer.start()
        try:
            while True:
                self._take(pickle.loads(connection.recv_bytes()))
        except (EOFError, OSError):
            pass
        except Exception:
            logger.exception("what the engine's process said could not be taken")
            process.kill()
        self._outbox.put(None)
        try:
            code = process.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        self._note_end(signal.Signals(-code).name if code < 0 else f"exit code {code}")

    def _spawn(self) -> tuple[subprocess.Popen[bytes], Connection[Any, Any]]:
        ours, theirs = socket.socketpair()
        process = spawn(_CHILD, theirs)
        self._process, self.pid = process, process.pid
        if self._is_unwanted:
            process.kill()
        return process, Connection(ours.detach())

    def _take(self, message: object) -> None:
        match message:
            case Step():
                self._take_step(message)
            case Log(attributes):
                record = logging.makeLogRecord(attributes)
                target = logging.getLogger(record.name)
                if target.isEnabledFor(record.levelno):
                    target.handle(record)
            case Answer(number, kv_map):
                self.desk.answer(number, kv_map)
            case Failed(number):
                request = self._live.pop(number).request
                self.desk.publish(self._stats, 1, len(request.prompt_token_ids))
                self.desk.deliver_error(request.key, RequestFailedError("The engine failed on this request."))
            case Ready(facts, stats):
                self.facts, self._stats = facts, stats
                self.metrics = new_metrics(self._config, facts.max_model_len)
                self.desk = FrontDesk(self._config.scheduler, self._pace, stats, self._send)
                self._ready.set_result(None)
            case Refused(error):
                self._ready.set_exception(error)
            case Ended(reason, stats, observations, gained):
                replay(observations, self.metrics)
                self._has_ended = True
                self.desk.close(reason, stats, [self._gain(one) for one in gained])
                self._outbox.put(Stop())

    def _take_step(self, step: Step) -> None:
        replay(step.observations, self.metrics)
        self._pace.take_over(step.pace)
        self._stats = step.stats
        self.desk.publish(step.stats, step.num_requests, step.num_tokens)
        changed: list[_LiveRequest] = []
        numbers = iter(step.tokens)
        for number, index, token in zip(numbers, numbers, numbers, strict=True):
            live = self._live[number]  # type: ignore[index]  # a token alone may be None
            if not live.gains:
                changed.append(live)
            live.gains.append((index, token, None, None, None, live.prompt))  # type: ignore[arg-type]
        changed += [self._gain(gained) for gained in step.gained]
        self.desk.deliver(changed)

    def _gain(self, gained: Gained) -> _LiveRequest:
        live = self._live[gained.number]
        if gained.prompt is not None:
            live.prompt = gained.prompt
        live.gains = [(*gain, live.prompt) for gain in gained.gains]
        if gained.over:
            live.over, live.error, live.stats = True, gained.error, gained.stats
            live.num_generated = gained.num_generated
            del self._live[gained.number]
        return live

    def _note_end(self, how: str) -> None:
        """The process is over."""
        if not self._ready.done():
            self._ready.set_exception(
                ModelLoadError(
                    f"The engine's process ended ({how}) while it loaded the model. After SIGKILL, look whether the "
                    "machine has memory enough."
                )
            )
        elif self._ready.exception() is None and not self._has_ended:
            logger.error("The engine's process has died (%s).", how)
            self.metrics.request_success["error"].inc(len(self._live))
            reason = f"The engine's process has died ({how}): it must be restarted."
            self.desk.close(reason, self._stats.emptied(), [])
        self._live.clear()


class _LiveRequest:
    """A request whose gains come from the process; see `front_desk.Progress`."""

    __slots__ = ("error", "gains", "num_generated", "number", "over", "prompt", "request", "stats")

    def __init__(self, number: int, request: EngineRequest) -> None:
        self.number = number
        self.request = request
        self.gains: list[Gain] = []
        self.prompt = PromptFacts()
        self.error: PagedBackendError | None = None
        self.over = False
        self.stats: RequestStateStats | None = None
        self.num_generated: Sequence[int] = ()


def _pickled(request: EngineRequest) -> bytes:
    """What the process makes the request of; where that is nothing, it refuses it."""
    try:
        return pickle.dumps(request, pickle.HIGHEST_PROTOCOL)
    except Exception:
        logger.exception("request %s cannot be sent to the engine's process", request.request_id)
        return b""
