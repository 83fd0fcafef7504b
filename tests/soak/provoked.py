"""What befell an engine while it was soaked: a soak in which nothing happens proves nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from paged_backend.engine.core import EngineCore
from paged_backend.executor.pending import PendingStep
from paged_backend.outputs import CompletionOutput, RequestOutput
from paged_backend.scheduler.plan import NOT_YET_DRAWN, StepPlan


@dataclass
class Provoked:
    """Counters; they add up.

    Attributes:
        requests, tokens, logprobs: that were compared with those of the same request alone.
        aborts: requests beside them that were ended early.
        steps: of the engine.
        ahead: those that computed tokens which the step before had not drawn when they were launched.
        penalised: those of them that drew for sequences with penalties.
        chunks: parts of prompts computed in a step that was not the prompt's last.
        recomputed, swapped: preemptions, by what became of the blocks.
        copies: of blocks that somebody else had, too.
        hits: prompt tokens found in the pool.
        offload_hits: prompt tokens that came from host memory, from disk by way of there as well.
        disk_bytes: read.
    """

    requests: int = 0
    tokens: int = 0
    logprobs: int = 0
    aborts: int = 0
    steps: int = 0
    ahead: int = 0
    penalised: int = 0
    chunks: int = 0
    recomputed: int = 0
    swapped: int = 0
    copies: int = 0
    hits: int = 0
    offload_hits: int = 0
    disk_bytes: int = 0

    def __add__(self, other: Provoked) -> Provoked:
        return Provoked(*[getattr(self, f.name) + getattr(other, f.name) for f in fields(self)])

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of the counters that are still 0."""
        return [name for name in names if not getattr(self, name)]

    def watch(self, core: EngineCore) -> None:
        """Counts, from now on, what an engine's steps are made of."""
        launch = core._executor.launch

        def counted(plan: StepPlan) -> PendingStep:
            self.steps += 1
            self.chunks += sum(line.sampling is None for line in plan.sequences)
            self.copies += len(plan.block_copies)
            unseen = [line for line in plan.sequences if NOT_YET_DRAWN in line.token_ids]
            self.ahead += bool(unseen)
            self.penalised += any(line.sampling is not None and line.sampling.penalises for line in unseen)
            return launch(plan)

        core._executor.launch = counted

    def take_stats(self, core: EngineCore) -> None:
        """Adds what an engine, once and at its end, says of itself."""
        stats = core.stats()
        self.recomputed += stats.num_preemptions - stats.num_swaps
        self.swapped += stats.num_swaps
        self.hits += stats.prefix_cache_hits
        self.offload_hits += stats.external_prefix_cache_hits
        if stats.transfer is not None and stats.transfer.disk is not None:
            assert stats.transfer.disk.num_failures == 0
            self.disk_bytes += stats.transfer.disk.read_bytes

    def take_outputs(self, outputs: Sequence[RequestOutput]) -> None:
        """Adds what was compared."""
        samples: list[CompletionOutput] = [sample for output in outputs for sample in output.outputs]
        self.requests += len(outputs)
        self.tokens += sum(len(sample.token_ids) for sample in samples)
        self.logprobs += sum(len(candidates) for sample in samples for candidates in sample.logprobs or ())


def table(rows: dict[str, Provoked]) -> list[str]:
    """Lines for a person: a row for each name, and their sum."""
    names = [f.name for f in fields(Provoked)]
    cells = [["", *names]]
    for title, provoked in {**rows, "all": sum(rows.values(), Provoked())}.items():
        cells.append([title, *[f"{getattr(provoked, name):,}" for name in names]])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        f"{row[0]:{widths[0]}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in cells
    ]
