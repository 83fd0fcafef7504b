"""Engines that stop together, whatever becomes of one of them."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from paged_backend.config import EngineConfig
from paged_backend.engine.client import EngineClient
from paged_backend.errors import ModelLoadError
from paged_backend.handlers.engine_group import EngineGroup


class Engines:
    """Engines by name, some of which fail to stop; `stopped` says in which order they were told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *failing: str) -> None:
        self.stopped: list[str] = []
        self._failing = failing
        monkeypatch.setattr(EngineClient, "start", self.start)

    def start(self, config: EngineConfig) -> EngineClient:
        (name,) = config.model.served_model_name
        if name == "broken":
            raise ModelLoadError("no such file")

        def stop(timeout_s: float = 0.0) -> bool:
            self.stopped.append(name)
            if name in self._failing:
                raise OSError(f"{name} hangs")
            return True

        return cast("EngineClient", SimpleNamespace(config=config, shutdown=stop, drain=stop))


def group_of(*names: str) -> EngineGroup:
    return EngineGroup.start([EngineConfig.from_args(served_model_name=[name]) for name in names])


def test_all_are_shut_down_though_one_fails_to(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    engines = Engines(monkeypatch, "second")
    group = group_of("first", "second", "third")
    with pytest.raises(OSError, match="second hangs"):
        group.shutdown()
    assert engines.stopped == ["first", "second", "third"]
    assert "The engine of second could not be shut down." in caplog.text


def test_those_that_fail_are_told_together(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    engines = Engines(monkeypatch, "first", "third")
    group = group_of("first", "second", "third")
    with pytest.raises(RuntimeError, match=r"^2 engines .*: first: first hangs; third: third hangs.$"):
        group.shutdown()
    assert engines.stopped == ["first", "second", "third"]
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 2


def test_a_failing_shutdown_hides_neither_the_load_error_nor_the_engines_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engines = Engines(monkeypatch, "first")
    with pytest.raises(ModelLoadError, match="The model 'broken': no such file"):
        group_of("first", "second", "broken", "never")
    assert engines.stopped == ["first", "second"]


def test_one_that_cannot_be_drained_has_not_ended(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    engines = Engines(monkeypatch, "first")
    assert not group_of("first", "second").drain(1.0)
    assert sorted(engines.stopped) == ["first", "second"] and "The engine of first could not be drained." in caplog.text
    Engines(monkeypatch)
    assert group_of("first", "second").drain(1.0)
