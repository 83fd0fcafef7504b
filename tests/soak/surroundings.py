"""Where requests may run: engines too small for all of them, of every budget, with and without tiers below the pool."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from paged_backend.engine.core import EngineCore
from tests.soak.requests import LONGEST_SEARCH, WIDEST
from tests.soak.subjects import MAX_MODEL_LEN, Subject

_HOST_GIB = 0.02
"""For a tiny model all that there is to keep, for the bundled one a part of it."""


@dataclass(frozen=True)
class Surrounding:
    """An engine and what is forced upon it.

    Attributes:
        preemption: "recompute" or "swap", by a pool that is too small; None leaves room for all.
        budget: tokens of a step.
        tier: "none", "host" (memory) or "disk" (by way of little host memory); with a disk the engine is started anew,
            too.
        overlaps: whether steps are launched before the last one is read.
    """

    preemption: str | None
    budget: int
    num_threads: int
    tier: str
    overlaps: bool = False

    def __str__(self) -> str:
        preemption = self.preemption or "roomy"
        overlaps = "-overlaps" if self.overlaps else ""
        return f"{preemption}-{self.budget}-threads{self.num_threads}-{self.tier}{overlaps}"

    @property
    def must_provoke(self) -> Iterator[str]:
        """What must have happened here, by the names of `Provoked`."""
        yield from ("aborts", "copies", "hits")
        if self.budget < 2048:
            yield "chunks"
        if self.preemption:
            yield "swapped" if self.preemption == "swap" else "recomputed"
        if self.tier != "none":
            yield "offload_hits"
        if self.tier == "disk":
            yield "disk_bytes"
        if self.overlaps:
            yield from ("ahead", "penalised")

    def start(self, subject: Subject, seed: int, folder: Path) -> EngineCore:
        """An engine, whose other properties the seed decides.

        Args:
            folder: where a tier on disk may be; what an earlier engine left there is found.
        """
        rng = Random(f"{seed}: {self}")
        arguments: dict[str, Any] = {
            "max_num_batched_tokens": self.budget,
            "num_threads": self.num_threads,
            "block_size": rng.choice((4, 8, 16, 32)),
            "max_num_seqs": rng.choice((12, 16) if self.budget == 16 else (16, 32, 64)),
            "scheduling_policy": rng.choice(("fcfs", "priority", "fair")),
            "preemption_mode": self.preemption or "recompute",
            "async_scheduling": self.overlaps,
        }
        if self.tier == "host":
            arguments["kv_offloading_size"] = _HOST_GIB
        if self.tier == "disk":
            arguments["kv_offloading_dir"] = str(folder)
        if self.preemption:
            roomy = subject.start(**{**arguments, "kv_offloading_dir": None, "preemption_mode": "recompute"})
            needed = roomy._kv.blocks_for
            arguments["num_gpu_blocks_override"] = max(
                int(needed(MAX_MODEL_LEN) * rng.uniform(1.0, 1.5)), WIDEST * needed(LONGEST_SEARCH)
            )
            roomy.close()
        return subject.start(**arguments)


def surroundings(place: int) -> Iterator[Surrounding]:
    """For the model of this place in the list: each way of preemption with each budget, and room for all.

    Threads and tiers alternate with budgets and models, so that some model meets every combination.
    """
    budgets = (16, 64, 256, 2048)
    tiers = {"recompute": ("none", "host", "disk"), "swap": ("host", "disk")}
    for preemption, choices in tiers.items():
        for number, budget in enumerate(budgets, start=place):
            tier = choices[number // 2 % len(choices)]
            yield Surrounding(preemption, budget, 1 + number % 2, tier, number % 3 == 0)
    yield Surrounding(None, budgets[place % len(budgets)], 2 - place % 2, ("none", "disk")[place // 2 % 2])


REDUCED: tuple[tuple[str, Surrounding], ...] = (
    ("llama-float32", Surrounding("recompute", 16, 2, "none")),
    ("llama-float32", Surrounding("swap", 256, 1, "disk", overlaps=True)),
    ("llama-float32", Surrounding(None, 2048, 2, "none")),
    ("qwen2-mixed-windows", Surrounding("recompute", 2048, 1, "disk", overlaps=True)),
    ("qwen2-mixed-windows", Surrounding("swap", 64, 2, "host")),
    ("llama-int8", Surrounding("recompute", 64, 2, "host", overlaps=True)),
    ("llama-int8", Surrounding("swap", 16, 1, "disk")),
)
"""Models and surroundings for a quick look."""
