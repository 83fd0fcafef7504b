"""An engine's life: readiness tells the truth, a failed load is final, stopping has a bound."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any, cast

import pytest

from paged_backend.errors import EngineUnavailableError, ModelLoadError
from paged_backend.handlers.bento import runtime as runtime_module
from paged_backend.handlers.bento.runtime import EngineRuntime, Engines
from paged_backend.handlers.deployment import Deployment

DEPLOYMENT = Deployment.from_dict({"name": "tiny", "server": {"drain_timeout_s": 0.2, "stall_timeout_s": 7}})


class StubClient:
    """What the runtime uses of an EngineClient."""

    def __init__(self) -> None:
        self.fault: str | None = None
        self.asked_stall_s: float | None = None
        self.calls: list[str] = []
        self.drains = True

    def check_health(self, stall_timeout_s: float | None = None) -> None:
        self.asked_stall_s = stall_timeout_s
        if self.fault is not None:
            raise EngineUnavailableError(self.fault)

    def give_up(self, reason: str) -> None:
        self.calls.append(f"give up: {reason}")

    def drain(self, timeout_s: float) -> bool:
        self.calls.append(f"drain {timeout_s}")
        return self.drains

    def shutdown(self) -> None:
        self.calls.append("shutdown")


class Loader:
    """Loads when it is let."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.client = StubClient()
        self.go = threading.Event()
        self.count = 0
        self._failure = failure

    def __call__(self, deployment: Deployment) -> Engines:
        self.count += 1
        assert self.go.wait(10)
        if self._failure is not None:
            raise self._failure
        return cast(Engines, (self.client, "the service"))


def reason(runtime: EngineRuntime) -> str:
    with pytest.raises(EngineUnavailableError) as caught:
        runtime.check_ready()
    return str(caught.value)


def test_it_is_ready_when_it_is_loaded_and_no_sooner() -> None:
    async def main() -> None:
        loader = Loader()
        runtime = EngineRuntime(DEPLOYMENT, load=loader)
        assert "not started" in reason(runtime)
        task = runtime.start()
        assert runtime.start() is task
        await asyncio.sleep(0.02)
        assert "starting" in reason(runtime)
        with pytest.raises(EngineUnavailableError, match="starting"):
            _ = runtime.engines
        loader.go.set()
        await runtime.ensure_started()
        runtime.check_ready()
        assert loader.client.asked_stall_s == 7
        assert cast(Any, runtime.openai) == "the service"
        assert loader.count == 1 and not runtime.failed
        await runtime.stop()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("failure", "told_why"),
    [
        (ModelLoadError("No config.json in folder secret."), "No config.json in folder secret."),
        (RuntimeError("secret"), "an internal error."),
    ],
)
def test_a_failed_load_is_final_and_tells_the_operator_why(failure: Exception, told_why: str) -> None:
    async def main() -> None:
        told: list[str] = []
        loader = Loader(failure)
        loader.go.set()
        runtime = EngineRuntime(DEPLOYMENT, load=loader, on_load_failed=told.append)
        with pytest.raises(EngineUnavailableError, match="could not be loaded"):
            await runtime.ensure_started()
        assert runtime.failed and "secret" not in reason(runtime)
        assert told == [told_why]
        with pytest.raises(EngineUnavailableError):
            await runtime.ensure_started()
        assert loader.count == 1
        await runtime.stop()

    asyncio.run(main())


def test_a_lost_engine_is_noticed_without_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_module, "WATCH_INTERVAL_S", 0.01)

    async def main() -> None:
        told: list[str] = []
        loader = Loader()
        loader.go.set()
        runtime = EngineRuntime(DEPLOYMENT, load=loader, on_engine_lost=told.append)
        await runtime.ensure_started()
        loader.client.fault = "The engine has died."
        await asyncio.sleep(0.1)
        assert told == ["The engine has died."]
        assert loader.client.calls == ["give up: The engine has died."]
        assert runtime.failed and "died" in reason(runtime)
        await runtime.stop()

    asyncio.run(main())


def test_stopping_drains_then_shuts_down_once() -> None:
    async def main() -> None:
        told: list[str] = []
        loader = Loader()
        loader.go.set()
        runtime = EngineRuntime(DEPLOYMENT, load=loader, on_engine_lost=told.append)
        await runtime.ensure_started()
        loader.client.drains = False
        stopping = runtime.begin_stop()
        assert "draining" in reason(runtime)
        assert runtime.begin_stop() is stopping
        await runtime.stop()
        assert loader.client.calls == ["drain 0.2", "shutdown"]
        assert told == []

    asyncio.run(main())


def test_a_stop_does_not_wait_for_the_loading() -> None:
    loader = Loader()

    async def main() -> None:
        runtime = EngineRuntime(DEPLOYMENT, load=loader)
        runtime.start()
        await asyncio.sleep(0.02)
        await runtime.stop()

    started_s = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - started_s < 1
    loader.go.set()


def test_an_engine_that_comes_after_the_stop_is_shut_down() -> None:
    async def main() -> None:
        loader = Loader()
        runtime = EngineRuntime(DEPLOYMENT, load=loader)
        starting = runtime.start()
        await runtime.stop()
        loader.go.set()
        await starting
        assert loader.client.calls == ["shutdown"]
        with pytest.raises(EngineUnavailableError):
            _ = runtime.engines

    asyncio.run(main())
