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
    """

    preemption: str | None
    budget: int
    num_threads: int
    tier: str

    def __str__(self) -> str:
        preemption = self.preemption or "roomy"
        return f"{preemption}-{self.budget}-threads{self.num_threads}-{self.tier}"

    @property
    def must_provoke(self) -> Iterator[str]:
        """What must have happened here, by the names of `Provoked`."""
        yield from ("aborts", "copies", "hits")
        if self.budget < 2048:
            yield "chunks"
        if self.preemption:
            yield "swapped" if self.preemption == "swap" else "recomputed"
        if self.tier != "none" and self.preemption:
            yield "offload_hits"
        if self.tier == "disk":
            yield "disk_bytes"

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
        }
        if self.tier == "host":
            arguments["kv_offloading_size"] = _HOST_GIB
        if self.tier == "disk":
            arguments["kv_offloading_dir"] = str(folder)
        if self.preemption:
            roomy = subject.start(**{**arguments, "kv_offloading_dir": None, "preemption_mode": "recompute"})
            needed = roomy._kv.blocks_for
            arguments["num_gpu_blocks_override"] = max(
                int(needed(MAX_MODEL_LEN) * rng.uniform(1.2, 2.0)), WIDEST * needed(LONGEST_SEARCH)
            )
            roomy.close()
        return subject.start(**arguments)


def _tiny_pools() -> Iterator[Surrounding]:
    """Every way of preemption with every budget and number of threads."""
    tiers = {"recompute": ("none", "host", "disk"), "swap": ("host", "disk")}
    for preemption, choices in tiers.items():
        for i, (budget, num_threads) in enumerate((b, t) for b in (16, 64, 256, 2048) for t in (1, 2)):
            yield Surrounding(preemption, budget, num_threads, choices[i % len(choices)])


SURROUNDINGS: tuple[Surrounding, ...] = (
    *_tiny_pools(),
    Surrounding(None, 64, 2, "none"),
    Surrounding(None, 2048, 1, "disk"),
)
"""Of the full size."""
