"""What answers the conformance list in this process, with the deployment of the live hosts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from paged_backend.handlers.deployment import Deployment
from paged_backend.handlers.loading import load_engines
from tests.conformance.exchange import Caller
from tests.conformance.transports import InProcess
from tests.serving.conftest import DEPLOYMENT


@contextmanager
def served_in_process() -> Iterator[Caller]:
    """The service that both hosts mount, without a host."""
    engines, service = load_engines(Deployment.from_dict({"name": "paged-tiny", **DEPLOYMENT}))
    transport = InProcess(service)
    try:
        yield Caller(transport)
    finally:
        transport.close()
        engines.shutdown()
