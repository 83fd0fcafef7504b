"""The service in this process, with the deployment of the live hosts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from paged_backend.handlers.deployment import Deployment
from paged_backend.handlers.loading import load_engine
from tests.conformance.exchange import Caller
from tests.conformance.transports import InProcess

DEPLOYMENT = {"engine": {"model": "paged-tiny", "max_num_seqs": 8, "max_num_batched_tokens": 256, "num_threads": 1}}


@pytest.fixture(scope="session")
def in_process() -> Iterator[Caller]:
    client, service = load_engine(Deployment.from_dict({"name": "paged-tiny", **DEPLOYMENT}))
    transport = InProcess(service)
    yield Caller(transport)
    transport.close()
    client.shutdown()
