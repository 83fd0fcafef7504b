"""The processes that compute a model together, as seen from one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paged_backend.executor.collectives import JoinOverRanks, RankExchange, SumOverRanks
from paged_backend.executor.step_work import StepWork
from paged_backend.models.shard import WHOLE, Shard


class Ranks:
    """A process that has the whole model, and nobody beside it: what there is to agree on, it knows.

    Attributes:
        shard: which part of the model is here.
    """

    shard: Shard = WHOLE

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Around all that comes before the first step; ends the others where it fails.

        Raises:
            Exception: what failed; where this rank only waited for another one, what kept that one from loading.
        """
        try:
            yield
        except BaseException:
            self.close()
            raise

    def connect(self, device: torch.device) -> None:
        """Waits until every rank has its part of the model; from then on they exchange tensors."""

    def agree(self, num_blocks: int) -> int:
        """Blocks of the pool in every rank: as many as the one with the fewest can have."""
        return num_blocks

    def wait_ready(self) -> None:
        """Waits until every rank can do steps."""

    def begin(self, work: StepWork) -> None:
        """Has the others do a step, which this rank is about to do too."""

    def share(self, x: Tensor) -> None:
        """In the middle of a step, makes every rank's tensor what the first one's is."""

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around the part of a step that every rank does."""
        yield

    def on_lost(self, call: Callable[[str], None]) -> None:
        """Has this called, from any thread, with the reason, when one of the others is lost."""

    def close(self) -> None:
        """Ends the others."""


class Follower(Ranks):
    """Every rank but the first: does what that one says.

    Args:
        connection: to the first rank.
    """

    def __init__(self, rank: int, size: int, connection: Connection[Any, Any]) -> None:
        self._exchange = RankExchange(rank, size)
        self.shard = shard_of(self._exchange)
        self._connection = connection

    def agree(self, num_blocks: int) -> int:
        """See `Ranks`."""
        self._connection.send(num_blocks)
        agreed: int = self._connection.recv()
        return agreed

    def connect(self, device: torch.device) -> None:
        """See `Ranks`."""
        self._connection.send(None)
        meeting: Path = self._connection.recv()
        self._exchange.connect(meeting, device)

    def wait_ready(self) -> None:
        """See `Ranks`."""
        self._connection.send(None)

    def share(self, x: Tensor) -> None:
        """See `Ranks`."""
        x.copy_(self._exchange.gathered(x)[0])

    def works(self) -> Iterator[StepWork]:
        """The steps to do, until the first rank is gone or wants no more."""
        while True:
            try:
                data = self._connection.recv_bytes()
            except (EOFError, ConnectionError):
                return
            if not data:
                return
            yield StepWork.from_bytes(data)


def shard_of(exchange: RankExchange) -> Shard:
    """A rank's part of a model, with what it needs of the others'."""
    return Shard(rank=exchange.rank, size=exchange.size, sum=SumOverRanks(exchange), join=JoinOverRanks(exchange))
