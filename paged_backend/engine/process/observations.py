"""Metrics are told where they are asked for: what the engine's process observes is put down, and observed there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from paged_backend.engine.metrics import EngineMetrics

Observation = tuple[str, tuple[Any, ...]]
"""A histogram or a method of `EngineMetrics` by name, and what it is given."""


class ObservationLog:
    """Stands in for the `EngineMetrics` of a core: every histogram is there, every method, and puts down what it is
    given."""

    def __init__(self) -> None:
        self._observations: list[Observation] = []

    def __getattr__(self, name: str) -> _Entry:
        if name.startswith("_"):  # nothing that the core observes, but what pickle and others look for
            raise AttributeError(name)
        entry = _Entry(name, self)
        setattr(self, name, entry)  # found without this method from now on
        return entry

    def put(self, observation: Observation) -> None:
        """Adds one."""
        self._observations.append(observation)

    def take(self) -> list[Observation]:
        """What has been put down since the last call."""
        taken, self._observations = self._observations, []
        return taken


class _Entry:
    """One histogram, or one method."""

    def __init__(self, name: str, log: ObservationLog) -> None:
        self._name = name
        self._log = log

    def observe(self, *arguments: Any) -> None:
        """As a histogram's."""
        self._log.put((self._name, arguments))

    __call__ = observe


def replay(observations: Iterable[Observation], metrics: EngineMetrics) -> None:
    """Observes what was put down."""
    for name, arguments in observations:
        target = getattr(metrics, name)
        observe = target if callable(target) else target.observe
        observe(*arguments)
