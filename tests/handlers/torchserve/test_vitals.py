"""When a worker ends itself."""

from __future__ import annotations

import os

import pytest

from paged_backend.errors import EngineUnavailableError
from paged_backend.handlers.torchserve.vitals import Vitals
from tests.handlers.torchserve.scripted import ScriptedEngine


class Worker:
    """Vitals with a clock, a parent and an exit that the test owns."""

    def __init__(self) -> None:
        self.engine = ScriptedEngine()
        self.now_s = 100.0
        self.parent_pid = 7
        self.num_live = 0
        self.draining = False
        self.exits: list[int] = []
        self.vitals = Vitals(
            self.engine,
            stall_timeout_s=30.0,
            num_live=lambda: self.num_live,
            is_draining=lambda: self.draining,
            end_process=self.exits.append,
            clock_s=lambda: self.now_s,
            parent_pid=lambda: self.parent_pid,
        )

    def live(self, seconds: float) -> bool:
        """Ticks for a while; whether the worker is still there."""
        for _ in range(round(seconds * 10)):
            if self.exits:
                break
            self.now_s += 0.1
            self.vitals.tick()
        return not self.exits


@pytest.fixture
def worker() -> Worker:
    return Worker()


def test_healthy_worker_lives(worker: Worker) -> None:
    assert worker.live(60)


def test_dead_engine_ends_the_idle_worker(worker: Worker) -> None:
    worker.engine.fault = EngineUnavailableError("dead")
    assert not worker.live(1.5)
    assert worker.exits == [1]


def test_errors_may_go_out_first(worker: Worker) -> None:
    worker.num_live = 3
    worker.engine.fault = EngineUnavailableError("stuck")
    assert worker.live(0.8)
    assert not worker.engine.given_up
    assert worker.live(1)
    assert set(worker.engine.given_up) == {"stuck"}
    assert not worker.live(1)


def test_a_worker_ends_when_all_errors_are_out(worker: Worker) -> None:
    worker.num_live = 3
    worker.engine.fault = EngineUnavailableError("stuck")
    assert worker.live(1.3)
    worker.num_live = 0
    assert not worker.live(0.2)


def test_engine_that_recovers_keeps_its_worker(worker: Worker) -> None:
    worker.num_live = 3
    worker.engine.fault = EngineUnavailableError("no step for 30 s")
    assert worker.live(0.8)
    worker.engine.fault = None
    assert worker.live(10)


def test_draining_engine_is_not_ill(worker: Worker) -> None:
    worker.draining = True
    worker.engine.fault = EngineUnavailableError("draining")
    assert worker.live(10)


def test_worker_does_not_outlive_its_server(worker: Worker) -> None:
    worker.parent_pid = 1
    assert not worker.live(0.1)


def test_real_parent_is_this_process_parent() -> None:
    exits: list[int] = []
    vitals = Vitals(
        ScriptedEngine(),
        stall_timeout_s=1.0,
        num_live=lambda: 0,
        is_draining=lambda: False,
        end_process=exits.append,
    )
    vitals.tick()
    assert not exits and os.getppid() > 0
