"""Engines that stop together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from paged_backend.engine.client import EngineClient
from paged_backend.handlers.engine_group import EngineGroup


def test_all_are_shut_down_though_one_fails_to() -> None:
    down: list[str] = []

    def client(name: str) -> EngineClient:
        def shutdown() -> None:
            down.append(name)
            if name == "second":
                raise RuntimeError(name)

        model: Any = SimpleNamespace(config=SimpleNamespace(model=SimpleNamespace(served_model_name=(name,))))
        model.shutdown = shutdown
        return cast("EngineClient", model)

    group = EngineGroup([client("first"), client("second"), client("third")])
    with pytest.raises(RuntimeError, match="second"):
        group.shutdown()
    assert down == ["first", "second", "third"]
