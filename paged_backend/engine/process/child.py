"""What the engine's process runs: loads, takes items in, and steps until it is told to stop or nobody is there."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, NoReturn, cast

from paged_backend.child_process import sendable
from paged_backend.config import EngineConfig
from paged_backend.engine.engine_thread import new_core
from paged_backend.engine.loading import load_engine
from paged_backend.engine.loop import EngineLoop
from paged_backend.engine.metrics import EngineMetrics
from paged_backend.engine.parameters import ParameterDesk
from paged_backend.engine.process.line import DeskLine, Line, LogLine
from paged_backend.engine.process.messages import Abort, Add, AskMap, Failed, Ready, Refused, Start, Stop
from paged_backend.engine.process.observations import ObservationLog
from paged_backend.engine.request import EngineRequest

logger = logging.getLogger(__name__)


def main(descriptor: int) -> NoReturn:
    """Serves the process at the other end of a socket, and ends this one when that wants no more of it.

    Args:
        descriptor: of the socket.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Terminals and supervisors send them to all of a group. When this process ends, the other one decides.
        signal.signal(number, lambda *_: None)
    connection: Connection[Any, Any] = Connection(descriptor)
    start: Start = pickle.loads(connection.recv_bytes())
    line = Line(connection)
    logging.getLogger().addHandler(LogLine(line))
    for name, level in start.log_levels.items():
        logging.getLogger(name).setLevel(level)
    try:
        child = _Child(start.config, line)
    except Exception as error:
        line.send(Refused(sendable(error)))
    else:
        child.serve(connection)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # all that matters is closed, and to take an interpreter with torch apart takes seconds


class _Child:
    """A loop, and who puts into its inbox what comes through the socket."""

    def __init__(self, config: EngineConfig, line: Line) -> None:
        executor, tokenizer = load_engine(config)
        observations = ObservationLog()
        core, facts = new_core(config, executor, tokenizer, cast(EngineMetrics, observations))
        self._parameters = ParameterDesk(config, tokenizer, facts.vocab_size, facts.eos_token_ids)
        self._line = line
        self._desk = DeskLine(line, core.pace, observations)
        self._loop = EngineLoop(core)
        executor.on_lost(self._loop.lose)
        line.send(Ready(facts, core.stats()))
        self._loop.start(self._desk)

    def serve(self, connection: Connection[Any, Any]) -> None:
        """Takes messages until `Stop`; then ends what is left, in good order."""
        while True:
            try:
                message = pickle.loads(connection.recv_bytes())
            except EOFError:
                os._exit(1)  # nobody is left to serve
            match message:
                case Add():
                    self._add(message)
                case Abort(key):
                    self._loop.send(key)
                case AskMap(number):
                    self._loop.send(number)
                case Stop():
                    self._loop.shutdown()
                    return

    def _add(self, message: Add) -> None:
        try:
            request: EngineRequest = pickle.loads(message.request)
            made = self._parameters.make_processors(request.params)
            if made is not request.params:
                request = replace(request, params=made)
        except Exception:  # whatever a user's code raises
            logger.exception("a request could not be taken over; the others go on")
            self._line.send(Failed(message.number))
            return
        self._desk.expect(message.key, message.number)
        self._loop.send(request)
