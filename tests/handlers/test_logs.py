"""Logs as lines of JSON: each whole, with the request's id where there is one, and without a word of a prompt."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import pytest

from paged_backend.errors import ConfigError
from paged_backend.handlers.deployment import Deployment
from paged_backend.handlers.logs import configure_logging
from paged_backend.handlers.openai.access_log import AccessLog
from paged_backend.handlers.openai.served_models import ServedModels
from paged_backend.handlers.openai.service import HttpRequest, OpenAIService
from paged_backend.handlers.torchserve.config_files import log_config
from tests.handlers.openai.conftest import FakeClient, read

NAMES = ("paged_backend", "paged_backend.access", "bentoml", "uvicorn.error", "uvicorn.access")
SECRET = "nobody may read this"


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    """Puts back what was set up."""
    before = [(logging.getLogger(name), *_state(logging.getLogger(name))) for name in NAMES]
    logging.getLogger("paged_backend.access").setLevel(logging.INFO)
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def _state(logger: logging.Logger) -> tuple[list[logging.Handler], int, bool]:
    return list(logger.handlers), logger.level, logger.propagate


def exchange(client: FakeClient, body: dict[str, Any]) -> None:
    """A request, read to its end."""
    service = OpenAIService(ServedModels.one(client, ("tiny",)), access_log=AccessLog())

    async def ask() -> None:
        await read(await service.handle(HttpRequest("/v1/completions", "POST", body=body)))

    asyncio.run(ask())


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_request_is_a_line_of_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "warning")  # the access log has a switch of its own
    exchange(FakeClient(), {"prompt": SECRET, "request_id": "mine", "max_tokens": 3})
    (line,) = lines(capsys)
    assert (line["level"], line["logger"], line["message"]) == ("INFO", "paged_backend.access", "request")
    assert (line["request_id"], line["method"], line["path"]) == ("cmpl-mine", "POST", "/v1/completions")
    assert (line["status"], line["key"], line["prompt_tokens"]) == (200, None, 1 + len(SECRET))
    assert 0 <= line["first_s"] <= line["total_s"] < 60
    assert line["timestamp"].startswith("20") and line["timestamp"].endswith("+00:00")
    assert SECRET not in json.dumps(line) and "access_fields" not in line


@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_is_a_line_with_the_requests_id(capsys: pytest.CaptureFixture[str], stream: bool) -> None:
    configure_logging("json", "info")
    exchange(FakeClient(fail_after=1), {"prompt": SECRET, "request_id": "mine", "stream": stream})
    fault, _ = sorted(lines(capsys), key=lambda line: str(line["logger"]), reverse=True)
    assert (fault["level"], fault["request_id"]) == ("ERROR", "cmpl-mine")
    assert "secret detail" in fault["exc_info"] and SECRET not in json.dumps(fault)


def test_what_the_host_logs_is_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    host = logging.getLogger("bentoml")
    host.handlers[:], host.propagate = [logging.StreamHandler()], False
    configure_logging("json", "info")
    logging.getLogger("bentoml.paged_backend").warning('two\nlines and a "quote"')
    logging.getLogger("paged_backend.engine.loading").info("%s is loaded", "tiny")
    captured = capsys.readouterr()
    assert json.loads(captured.err)["message"] == 'two\nlines and a "quote"'
    assert json.loads(captured.out)["message"] == "tiny is loaded"


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_levels(caplog: pytest.LogCaptureFixture, log_format: str) -> None:
    configure_logging(log_format, "error")
    assert not logging.getLogger("paged_backend.handlers.x").isEnabledFor(logging.WARNING)
    assert logging.getLogger("paged_backend.engine").isEnabledFor(logging.ERROR)


def test_text_leaves_lines_to_the_host(caplog: pytest.LogCaptureFixture) -> None:
    configure_logging("text", "info")
    exchange(FakeClient(), {"prompt": "x", "request_id": "mine"})
    (record,) = [record for record in caplog.records if record.name == "paged_backend.access"]
    assert record.getMessage().startswith("request_id=cmpl-mine key=- method=POST path=/v1/completions status=200 ")


@pytest.mark.parametrize(("key", "value"), [("log_format", "xml"), ("log_level", "loud"), ("log_level", 10)])
def test_what_is_not_known_is_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"server\.{key} must be one of"):
        Deployment.from_dict({"name": "m", "server": {key: value}}, environ={})


@pytest.mark.parametrize("as_json", [False, True])
def test_torchserves_own_lines(as_json: bool) -> None:
    root = ElementTree.fromstring(log_config(as_json=as_json).encode())
    patterns = {
        console.get("name"): console.find("PatternLayout").get("pattern")  # type: ignore[union-attr]
        for console in root.iter("Console")
    }
    assert set(patterns) == {"SERVER", "WORKER"} and all(pattern.endswith("%n") for pattern in patterns.values())
    assert "%ex{short.message}" in patterns["SERVER"], "why it cannot start a worker"
    assert {reference.get("ref") for reference in root.iter("AppenderRef")} == set(patterns)
    if as_json:
        assert patterns["WORKER"] == "%m%n", "the worker's lines are JSON already"
        assert set(json.loads(patterns["SERVER"].removesuffix("%n"))) == {"level", "logger", "message", "timestamp"}
