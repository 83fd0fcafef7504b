"""What the process of every rank but the first runs: loads its part of the model, does the steps it is sent."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from multiprocessing.connection import Connection
from typing import Any

from paged_backend.child_process import sendable
from paged_backend.config import EngineConfig
from paged_backend.executor.executor import Executor
from paged_backend.executor.ranks import Follower

logger = logging.getLogger(__name__)


def main(descriptor: int, rank: int) -> None:
    """Follows the first rank; returns when that wants no more.

    Args:
        descriptor: of the socket to it.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Terminals and supervisors send them to all of a group. When this process ends, the first rank decides.
        signal.signal(number, lambda *_: None)
    logging.basicConfig(format=f"rank {rank}: %(levelname)s %(name)s: %(message)s")
    connection: Connection[Any, Any] = Connection(descriptor)
    config = EngineConfig.from_args(connection.recv())
    follower = Follower(rank, config.executor.tensor_parallel_size, connection)
    try:
        executor = Executor(config, follower)
    except Exception as error:
        with contextlib.suppress(OSError):  # maybe that one is gone
            connection.send(sendable(error))
        return
    try:
        for work in follower.works():
            executor.follow(work)
    except Exception:
        logger.exception("a step failed")
        logging.shutdown()
        os._exit(1)
    os._exit(0)  # no peer to say goodbye to
