"""What this machine can do at most, measured right before and right after what is compared with it.

The figures are the C++ module's: operations of each arithmetic, and bytes read from memory, L3 and L2, a second, on all
of a runtime's threads, in the best twentieth of many short runs, and for the memory in their mean as well. Every
benchmark that speaks of a limit means these.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from paged_backend.kernels.cpu import _cpu

Limits = dict[str, float]
"""float_flops, int8_ops, int16_ops, memory_bytes, memory_mean_bytes, l3_bytes, l2_bytes: each a second; 0 where there
is no such thing."""


class LimitMeter:
    """Measures limits on one runtime.

    Args:
        runtime: its threads and instruction set are measured.
        seconds: for each figure, each time.

    Attributes:
        largest: of all that it has measured.
    """

    def __init__(self, runtime: _cpu.Runtime, seconds: float) -> None:
        self.largest: Limits = {}
        self._runtime = runtime
        self._seconds = seconds

    @contextmanager
    def around(self) -> Iterator[Limits]:
        """Gives a dict; when the block has ended it holds the larger of each figure before and after the block.

        The larger: a limit must not become easier to reach because something else ran meanwhile.
        """
        limits = _cpu.measure_limits(self._runtime, self._seconds)
        yield limits
        _raise_to(limits, _cpu.measure_limits(self._runtime, self._seconds))
        _raise_to(self.largest, limits)

    def report(self) -> Limits:
        """The largest, in units of 1e9 a second, for a report."""
        return {name: round(value / 1e9, 1) for name, value in self.largest.items()}


def _raise_to(limits: Limits, others: Limits) -> None:
    for name, value in others.items():
        limits[name] = max(value, limits.get(name, 0.0))
