"""What serves the conformance list: the same deployment in this process and on the live hosts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from paged_backend.handlers.deployment import Deployment
from paged_backend.handlers.loading import load_engine
from tests.conformance.exchange import Caller
from tests.conformance.transports import InProcess

DEPLOYMENT = {"engine": {"model": "paged-tiny", "max_num_seqs": 8, "max_num_batched_tokens": 256, "num_threads": 1}}


@contextmanager
def served_in_process() -> Iterator[Caller]:
    """The service that both hosts mount, over an engine with the bundled model."""
    client, service = load_engine(Deployment.from_dict({"name": "paged-tiny", **DEPLOYMENT}))
    transport = InProcess(service)
    try:
        yield Caller(transport)
    finally:
        transport.close()
        client.shutdown()
