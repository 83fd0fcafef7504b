"""Both hosts with one deployment, for tests that do to each what they do to the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.otlp_receiver import OtlpReceiver, otlp_receiver
from tests.serving.bento_host import BentoHost
from tests.serving.torchserve_host import TorchServeHost, running_torchserve

MAX_BODY_BYTES = 1_000_000
_ENGINE = {"model": "paged-tiny", "max_num_seqs": 8, "max_num_batched_tokens": 256, "num_threads": 1}
DEPLOYMENT: dict[str, Any] = {
    "models": [
        {"served_model_name": "paged-tiny", **_ENGINE},
        {"served_model_name": ["second", "alias"], **_ENGINE, "max_model_len": 100, "tool_call_parser": "hermes"},
    ],
    "server": {"max_body_bytes": MAX_BODY_BYTES, "log_format": "json"},
}

Host = BentoHost | TorchServeHost


@pytest.fixture(scope="session")
def receiver() -> Iterator[OtlpReceiver]:
    """Gets the traces of both hosts."""
    with otlp_receiver() as opened:
        yield opened


@pytest.fixture(scope="session")
def both_hosts(tmp_path_factory: pytest.TempPathFactory, receiver: OtlpReceiver) -> Iterator[dict[str, Host]]:
    """BentoML and TorchServe by name, ready; the tests leave them as they were."""
    models = [{**model, "otlp_traces_endpoint": receiver.endpoint} for model in DEPLOYMENT["models"]]
    deployment = {**DEPLOYMENT, "models": models}
    with BentoHost(tmp_path_factory.mktemp("bento"), deployment) as bento:
        with running_torchserve(deployment, tmp_path_factory.mktemp("torchserve")) as torchserve:
            bento.wait_ready()
            yield {"bentoml": bento, "torchserve": torchserve}


@pytest.fixture(params=["bentoml", "torchserve"])
def each_host(both_hosts: dict[str, Host], request: pytest.FixtureRequest) -> Host:
    """One after the other."""
    return both_hosts[request.param]
