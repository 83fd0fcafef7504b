"""The card: what it is, how long it takes for something, and what it can do at most."""

from __future__ import annotations

import importlib.metadata
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch

REPEATS: Final = 10
"""Launches of one measurement, one after the other."""

_ROUNDS: Final = 5
_READ_BYTES: Final = 4 << 30
_MATMUL_SIZE: Final = 8192


@dataclass(frozen=True)
class Rates:
    """What the card can do at most, measured.

    Attributes:
        bandwidth: bytes a second, of reading or of copying much memory, whichever is more.
        matmul: operations a second of the library's product of bfloat16, a multiplication and an addition being two.
    """

    bandwidth: float
    matmul: float


class Card:
    """One GPU; or, to try the script without one, the CPU, whose times say nothing.

    Attributes:
        device: "cuda", or "cpu" to try the script.
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)

    @property
    def is_real(self) -> bool:
        """Whether it is a GPU."""
        return self.device.type == "cuda"

    def describe(self) -> dict[str, Any]:
        """Its name, memory and capability, and the versions that matter to it."""
        versions = {name: _version(name) for name in ("torch", "triton", "transformers", "vllm")}
        about: dict[str, Any] = {"versions": versions, "cuda": torch.version.cuda}
        if not self.is_real:
            return {"name": "none: a trial on the CPU", **about}
        properties = torch.cuda.get_device_properties(self.device)
        return {
            "name": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            **about,
        }

    def seconds(self, run: Callable[[], object], *, graph: bool = True) -> float:
        """The median time of a run.

        Args:
            run: launches work on the device. It is called a few times before.
            graph: record the launches, so that the host's time is not measured. Not for a run that waits.
        """
        if not self.is_real:
            start = time.perf_counter()
            run()
            return max(time.perf_counter() - start, 1e-9)
        for _ in range(3):
            run()
        torch.cuda.synchronize()
        launch = self._recorded(run) if graph else lambda: [run() for _ in range(REPEATS)]
        return statistics.median(self._timed(launch) / REPEATS for _ in range(_ROUNDS))

    def rates(self) -> Rates:
        """What it can do at most, now."""
        num_bytes, size = (_READ_BYTES, _MATMUL_SIZE) if self.is_real else (1 << 16, 64)
        return Rates(self._bandwidth(num_bytes), self._matmul(size))

    def free(self) -> None:
        """Gives cached memory back, so that another process can have it."""
        if self.is_real:
            torch.cuda.empty_cache()

    def _bandwidth(self, num_bytes: int) -> float:
        memory = torch.zeros(2, num_bytes // 8, dtype=torch.float32, device=self.device)
        # Copying half of it into the other half reads and writes as many bytes as reading all of it.
        return num_bytes / min(self.seconds(memory.sum), self.seconds(lambda: memory[0].copy_(memory[1])))

    def _matmul(self, size: int) -> float:
        left, right = (torch.randn(size, size, device=self.device).to(torch.bfloat16) for _ in range(2))
        return 2 * size**3 / self.seconds(lambda: torch.mm(left, right))

    def _recorded(self, run: Callable[[], object]) -> Callable[[], object]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(REPEATS):
                run()
        graph.replay()
        return graph.replay

    def _timed(self, launch: Callable[[], object]) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        launch()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
