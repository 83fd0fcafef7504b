"""In the engine's process: the line to the front desk."""

from __future__ import annotations

import logging
import pickle
import threading
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from paged_backend.engine.pace import Pace
from paged_backend.engine.process.messages import Answer, Ended, Gained, Log, Step
from paged_backend.engine.process.observations import ObservationLog
from paged_backend.engine.request import RequestState
from paged_backend.engine.stats import EngineStats, KVMap
from paged_backend.errors import PagedBackendError


class Line:
    """Sends messages; for any thread. Waits while the other side does not read.

    Args:
        connection: to the process that started this one.
    """

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._connection = connection
        self._sending = threading.Lock()

    def send(self, message: object) -> None:
        """Sends one. Where nobody is left to hear it, nothing happens: this process is about to end."""
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        try:
            with self._sending:
                self._connection.send_bytes(data)
        except OSError:
            pass


class DeskLine:
    """A `Desk` for the engine's thread: one message a step, however many requests gained something.

    Args:
        pace, observations: of the core; what is new in them goes with each message.
    """

    def __init__(self, line: Line, pace: Pace, observations: ObservationLog) -> None:
        self._line = line
        self._pace = pace
        self._observations = observations
        self._numbers: dict[str, int] = {}  # of live requests, by key
        self._begun: set[int] = set()  # whose prompts the other side knows of
        self._published: tuple[EngineStats, int, int] = (EngineStats(), 0, 0)

    def expect(self, key: str, number: int) -> None:
        """A request of this key is about to be sent to the loop; the other side calls it by this number."""
        self._numbers[key] = number

    def publish(self, stats: EngineStats, num_requests: int = 0, num_tokens: int = 0) -> None:
        """Keeps the snapshot for `deliver`, which always follows."""
        self._published = stats, num_requests, num_tokens

    def deliver(self, states: Sequence[RequestState]) -> None:
        """Sends what was published, and what requests gained."""
        tokens: list[int | None] = []
        gained: list[Gained] = []
        numbers, begun = self._numbers, self._begun
        for state in states:
            number = numbers[state.request.key]
            num_before = len(tokens)
            is_plain = not state.over and number in begun
            if is_plain:
                for index, token, text, described, finish, _ in state.gains:
                    if text is not None or described is not None or finish is not None:
                        is_plain = False
                        break
                    tokens += (number, index, token)
            if not is_plain:
                del tokens[num_before:]
                gained.append(self._gained(number, state))
            state.gains = []
        self._send(tokens, gained)

    def deliver_error(self, key: str, error: PagedBackendError) -> None:
        """Ends a request with an error."""
        self._send([], [Gained(self._numbers.pop(key), [], None, over=True, error=error)])

    def _send(self, tokens: list[int | None], gained: list[Gained]) -> None:
        stats, num_requests, num_tokens = self._published
        self._published = stats, 0, 0
        observations = self._observations.take()
        self._line.send(Step(stats, num_requests, num_tokens, self._pace.numbers(), observations, tokens, gained))

    def answer(self, number: int, kv_map: KVMap) -> None:
        """The map that was asked for under this number."""
        self._line.send(Answer(number, kv_map))

    def close(self, reason: str, stats: EngineStats, ended: Sequence[RequestState]) -> None:
        """The engine has stopped, or died."""
        gained = [self._gained(self._numbers[state.request.key], state) for state in ended]
        self._line.send(Ended(reason, stats, self._observations.take(), gained))

    def _gained(self, number: int, state: RequestState) -> Gained:
        gains = state.gains
        prompt = None
        if number not in self._begun and gains:
            self._begun.add(number)
            prompt = gains[0][5]
        if state.over:
            self._begun.discard(number)
            del self._numbers[state.request.key]
        num_generated = state.num_generated if state.over else ()
        plain = [gain[:5] for gain in gains]
        return Gained(number, plain, prompt, state.over, state.error, state.stats, num_generated)


class LogLine(logging.Handler):
    """Sends the log's records to the other side, whose handlers write them."""

    def __init__(self, line: Line) -> None:
        super().__init__()
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        """Sends one, with its arguments and its exception made into text."""
        try:
            attributes = {**record.__dict__, "msg": record.getMessage(), "args": None, "exc_info": None}
            if record.exc_info and not record.exc_text:
                attributes["exc_text"] = "".join(traceback.format_exception(*record.exc_info)).rstrip()
            self._line.send(Log(attributes))
        except Exception:
            self.handleError(record)
