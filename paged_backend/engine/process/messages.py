"""What the two processes tell each other; each message is pickled by itself. Only they hold the socket's two ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from paged_backend.config import EngineConfig
from paged_backend.engine.detokenizer import Finish
from paged_backend.engine.facts import EngineFacts
from paged_backend.engine.process.observations import Observation
from paged_backend.engine.request import PromptFacts
from paged_backend.engine.stats import EngineStats, KVMap
from paged_backend.errors import PagedBackendError
from paged_backend.outputs import RequestStateStats
from paged_backend.scheduler.plan import SampledToken

# -- to the engine


class Start(NamedTuple):
    """The first message: what to load.

    Attributes:
        log_levels: of loggers, by name.
    """

    config: EngineConfig
    log_levels: dict[str, int]


class Add(NamedTuple):
    """A request.

    Attributes:
        number: what both sides call it.
        key: what the engine calls it.
        request: an `EngineRequest`, pickled by itself: what is wrong with it is wrong with it alone.
    """

    number: int
    key: str
    request: bytes


class Abort(NamedTuple):
    """A request has to end."""

    key: str


class AskMap(NamedTuple):
    """Who has which block?"""

    number: int


class Stop(NamedTuple):
    """The last message."""


# -- from the engine


class Ready(NamedTuple):
    """It is loaded."""

    facts: EngineFacts
    stats: EngineStats


class Refused(NamedTuple):
    """It cannot be loaded; the last message."""

    error: Exception


PlainGain = tuple[int, "int | None", "str | None", "SampledToken | None", "Finish | None"]
"""A `Gain` without what is known of the prompt."""


class Gained(NamedTuple):
    """What one request gained, where it is more than tokens.

    Attributes:
        prompt: what is known of the prompt, with the first; None with the others.
        stats: with the last.
        num_generated: tokens by sample, with the last.
    """

    number: int
    gains: list[PlainGain]
    prompt: PromptFacts | None
    over: bool = False
    error: PagedBackendError | None = None
    stats: RequestStateStats | None = None
    num_generated: Sequence[int] = ()


class Step(NamedTuple):
    """A step is over, or items have been taken in.

    Attributes:
        num_requests, num_tokens: that have moved from what was sent into the snapshot.
        pace: the numbers of a `Pace`.
        observations: for the metrics.
        tokens: three numbers for each token of a sample that goes on: the request's, the sample's index, and the token.
        gained: what other requests gained.
    """

    stats: EngineStats
    num_requests: int
    num_tokens: int
    pace: tuple[float, ...]
    observations: list[Observation]
    tokens: list[int | None]
    gained: list[Gained]


class Failed(NamedTuple):
    """A request that was sent could not be read."""

    number: int


class Answer(NamedTuple):
    """The map that was asked for."""

    number: int
    kv_map: KVMap


class Log(NamedTuple):
    """A record of its log, as `logging.makeLogRecord` takes it."""

    attributes: dict[str, Any]


class Ended(NamedTuple):
    """It has stopped, or died of an error; the last message but those of its log.

    Attributes:
        gained: requests that it has ended.
    """

    reason: str
    stats: EngineStats
    observations: list[Observation]
    gained: list[Gained]
