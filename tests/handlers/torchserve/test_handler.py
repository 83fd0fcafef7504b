"""The handler, called as TorchServe calls it, over a scripted service."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from paged_backend.errors import ConfigError
from paged_backend.handlers.deployment import API_KEY_VARIABLE, Deployment
from paged_backend.handlers.torchserve import handler as handler_module
from paged_backend.handlers.torchserve.config_files import model_config
from paged_backend.handlers.torchserve.handler import PagedBackendHandler, read_deployment
from paged_backend.handlers.torchserve.launch import DRAIN_SIGNAL, STARTUP_ERROR_VARIABLE
from tests.handlers.torchserve.scripted import ScriptedContext, ScriptedEngine, ScriptedService
from tests.serving.processes import wait_until

HEADERS = {"url_path": "v1/completions", "X-Mixed-Case": "kept", "body": {"content-type": "application/json"}}


class ScriptedHandler(PagedBackendHandler):
    """The handler with a scripted engine and service."""

    def __init__(self) -> None:
        super().__init__()
        self.service = ScriptedService()
        self.engine = ScriptedEngine()

    def start_engine(self, deployment: Deployment) -> tuple[ScriptedEngine, ScriptedService]:
        return self.engine, self.service


@pytest.fixture(autouse=True)
def process_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`initialize` changes the worker's logging, environment and signals: put them back."""
    monkeypatch.setenv("TS_DECODE_INPUT_REQUEST", "true")
    level, action = logging.getLogger().level, signal.getsignal(DRAIN_SIGNAL)
    yield
    logging.getLogger().setLevel(level)
    signal.signal(DRAIN_SIGNAL, action)


@pytest.fixture
def deployment() -> Deployment:
    return Deployment.from_dict({"name": "tiny", "server": {"drain_timeout_s": 3}}, environ={})


@pytest.fixture
def context(deployment: Deployment) -> ScriptedContext:
    return ScriptedContext(model_config(deployment))


@pytest.fixture
def handler(context: ScriptedContext) -> Iterator[ScriptedHandler]:
    one = ScriptedHandler()
    one.initialize(context)
    yield one
    assert one._pump is not None
    one._pump.close()


def call(
    handler: ScriptedHandler, context: ScriptedContext, requests: Mapping[str, Mapping[str, Any] | None]
) -> dict[str, tuple[bytes, bool | None]]:
    """One call of TorchServe; None for a request that the backend knows already."""
    context.start_call({name: {} if body is None else HEADERS for name, body in requests.items()})
    data = [{} if body is None else {"body": body} for body in requests.values()]
    return context.replies(handler.handle(data, context))


def test_plain_reply(handler: ScriptedHandler, context: ScriptedContext) -> None:
    assert call(handler, context, {"a": {"bytes": 3}}) == {"a": (b"xxx", None)}
    assert context.statuses == {0: 200}
    assert context.response_headers == {0: {"content-type": "application/json"}}
    (request,) = handler.service.requests
    assert request.path == "/v1/completions" and request.method is None
    assert request.headers == {"x-mixed-case": "kept"}


def test_stream_beside_an_error(handler: ScriptedHandler, context: ScriptedContext) -> None:
    replies = call(handler, context, {"stream": {"frames": 3, "gap": 0.08}, "bad": {"status": 400}})
    assert replies["bad"] == (b'{"error":{"code":400}}', None)
    assert context.statuses[1] == 400
    written = b"".join(body for name, (body, _) in replies.items() if name == "stream")
    criterion: bool | None = False
    end_s = time.monotonic() + 5
    while criterion is False:
        assert time.monotonic() < end_s
        for body, done in call(handler, context, {"stream": None if written else {"frames": 0}}).values():
            written += body
            criterion = done
    assert written == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
    assert criterion is True


def test_request_without_an_answer_is_left_out_of_the_reply(handler: ScriptedHandler, context: ScriptedContext) -> None:
    assert call(handler, context, {"slow": {"delay": 0.1, "status": 404}}) == {}
    end_s = time.monotonic() + 5
    while not (replies := call(handler, context, {"slow": {"delay": 0.1, "status": 404}})):
        assert time.monotonic() < end_s
    assert replies["slow"][1] is None
    assert context.statuses == {0: 404}
    assert len(handler.service.requests) == 1


def test_bodies_are_left_to_the_service(handler: ScriptedHandler) -> None:
    assert os.environ["TS_DECODE_INPUT_REQUEST"] == "false"


def test_drain_signal_drains_once(handler: ScriptedHandler) -> None:
    os.kill(os.getpid(), DRAIN_SIGNAL)
    os.kill(os.getpid(), DRAIN_SIGNAL)
    wait_until(lambda: bool(handler.engine.drained_s), timeout_s=2, what="the drain")
    # What outlives the drain is ended with an error, rather than cut off.
    wait_until(lambda: handler.engine.num_shutdowns > 0, timeout_s=2, what="the end of what is left")
    assert handler.engine.drained_s == [3]
    assert handler.engine.num_shutdowns == 1


def test_replies_of_a_full_batch_stay_below_the_hosts_bound(deployment: Deployment) -> None:
    context = ScriptedContext(model_config(deployment), batch_size=1000)
    one = ScriptedHandler()
    one.initialize(context)
    assert one._pump is not None
    assert one._pump._max_reply_bytes * 1000 <= deployment.torchserve.max_response_bytes
    one._pump.close()


def test_startup_error_is_written_where_the_launcher_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STARTUP_ERROR_VARIABLE, str(tmp_path / "error"))
    with pytest.raises(ConfigError, match=r"handler\.deployment"):
        ScriptedHandler().initialize(ScriptedContext({"handler": {}}))
    assert "handler.deployment" in (tmp_path / "error").read_text()


def test_archive_packed_with_a_key_does_not_open_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = Deployment.from_dict({"name": "tiny", "server": {"api_key": "secret"}}, environ={})
    packed = model_config(deployment)
    assert "secret" not in json.dumps(packed)
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=API_KEY_VARIABLE):
        read_deployment(packed)
    monkeypatch.setenv(API_KEY_VARIABLE, "secret")
    assert read_deployment(packed) == deployment


def test_one_of_several_workers_does_not_start(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # torchrun's
    with pytest.raises(ConfigError, match="tensor_parallel_size in the deployment"):
        read_deployment(model_config(deployment))


@pytest.mark.parametrize("name", ["handler", "paged_handler"])
def test_handler_modules_define_exactly_one_class(name: str) -> None:
    # TorchServe refuses to load any other number.
    module = importlib.import_module(f"{handler_module.__package__}.{name}")
    classes = inspect.getmembers(module, lambda one: inspect.isclass(one) and one.__module__ == module.__name__)
    assert len(classes) == 1
