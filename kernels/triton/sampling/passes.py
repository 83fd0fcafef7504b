"""Launches: the kernels over some rows' logits, one after the other, with the memory that they leave results in.

Nothing is read back, and what is launched depends on shapes and on the filters that the caller names, so that it can
be captured in a CUDA graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.token_counts import TokenCounts
from paged_backend.kernels.triton.sampling.arithmetic import BLOCK, GROUP
from paged_backend.kernels.triton.sampling.blocks import blocks_kernel, masses_kernel
from paged_backend.kernels.triton.sampling.description import logprobs_kernel, norms_kernel, ranks_kernel
from paged_backend.kernels.triton.sampling.draw import draw_kernel
from paged_backend.kernels.triton.sampling.likely import COUNTS, likely_kernel
from paged_backend.kernels.triton.sampling.penalties import penalise_kernel
from paged_backend.kernels.triton.sampling.tables import NUM_JOB_LINES, Filters
from paged_backend.kernels.triton.sampling.threshold import LIST, threshold_kernel

MAX_VOCAB_SIZE = 2**19
"""What the sums of whole numbers have room for, and the searches registers."""

NUM_WARPS = {
    "penalise": 4,
    "blocks": 4,
    "masses": 4,
    "threshold": 8,
    "draw": 4,
    "likely": 8,
    "norms": 1,
    "logprobs": 1,
    "ranks": 4,
}
"""Of a program of each kernel."""

BLOCK_SIZE: int = BLOCK.value
GROUPS_IN_BLOCK: int = BLOCK.value // GROUP.value


def num_blocks_of(vocab_size: int) -> int:
    """Blocks of a row."""
    return -(-vocab_size // BLOCK_SIZE)


@dataclass(frozen=True, slots=True)
class Scratch:
    """What the passes over J jobs leave for each other.

    Attributes:
        peaks, firsts, units: [J, blocks], each block's largest logit (float32), the first token that has it (int32),
            and the sum of its weights (int64, see arithmetic.py).
        group_peaks: float32 [J, groups].
        lowest: float32 [J], the logit that a token needs.
        active, listed: memory of the searches.
    """

    peaks: Tensor
    firsts: Tensor
    units: Tensor
    group_peaks: Tensor
    lowest: Tensor
    active: Tensor
    listed: Tensor

    @classmethod
    def make(cls, num_jobs: int, vocab_size: int, device: torch.device) -> Scratch:
        """Memory for so many jobs."""
        num_blocks = num_blocks_of(vocab_size)
        num_groups = num_blocks * GROUPS_IN_BLOCK

        def empty(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(rows, columns, dtype=dtype, device=device)

        return cls(
            empty(num_jobs, num_blocks, torch.float32),
            empty(num_jobs, num_blocks, torch.int32),
            empty(num_jobs, num_blocks, torch.int64),
            empty(num_jobs, num_groups, torch.float32),
            empty(num_jobs, 1, torch.float32),
            empty(num_jobs, num_groups, torch.int32),
            empty(num_jobs, LIST.value, torch.float32),
        )


class Passes:
    """The passes over the logits of J jobs, in the order of the methods; a job is a row and how to look at it."""

    def __init__(
        self,
        logits: Tensor,
        jobs: Tensor,
        scratch: Scratch,
        *,
        changed: Tensor | None = None,
        counts: TokenCounts | None = None,
        num_jobs: int | None = None,
    ) -> None:
        """
        Args:
            logits: float32 [R, V].
            jobs: int64 [NUM_JOB_LINES, at least J], the table of them.
            scratch: for as many jobs.
            changed: float32 [C, V], changed copies of rows, which jobs name by number.
            counts: where jobs are counted.
            num_jobs: J; all of the table's by default.
        """
        assert jobs.shape[0] == NUM_JOB_LINES
        self._logits = logits
        self._jobs = jobs
        self._scratch = scratch
        self._changed = changed
        self._counts = counts
        self._num_jobs = jobs.shape[1] if num_jobs is None else num_jobs
        self._vocab_size = logits.shape[1]
        self._num_blocks = num_blocks_of(self._vocab_size)
        # One row has no stride to speak of.
        stride = logits.stride(0) if logits.shape[0] > 1 else self._vocab_size
        copies = scratch.peaks if changed is None else changed  # where there are none, nobody looks for them
        self._rows = (logits, stride, copies, self._vocab_size, jobs, jobs.shape[1])
        self._padded = max(2, triton.next_power_of_2(self._num_blocks))

    @property
    def scratch(self) -> Scratch:
        """What the passes leave."""
        return self._scratch

    def row(self, row: int, copy: int) -> Tensor:
        """float32 [V]: the changed copy of a row, or the row itself where copy is -1."""
        return self._logits[row] if copy < 0 or self._changed is None else self._changed[copy]

    def penalise(self, num_changed: int) -> None:
        """Makes the copies of jobs that are counted.

        Args:
            num_changed: copies that are there already, changed otherwise.
        """
        assert self._counts is not None
        penalise_kernel[(self._num_jobs, self._num_blocks)](
            *self._rows,
            num_changed,
            self._counts.counts,
            self._counts.penalties,
            num_warps=NUM_WARPS["penalise"],
            enable_fp_fusion=False,
        )

    def look(self) -> None:
        """Every block's peak and sum."""
        scratch = self._scratch
        blocks_kernel[(self._num_jobs, self._num_blocks)](
            *self._rows,
            self._num_blocks,
            scratch.peaks,
            scratch.firsts,
            scratch.units,
            scratch.group_peaks,
            scratch.lowest,
            num_warps=NUM_WARPS["blocks"],
            enable_fp_fusion=True,
        )

    def narrow(self, filters: Filters) -> None:
        """Finds the logits that tokens need, and sums up again what is left."""
        if filters.by_count:
            self.search(by_mass=False)
            self._sum_again()
        if filters.by_mass:
            self.search(by_mass=True)
            self._sum_again()

    def search(self, *, by_mass: bool) -> None:
        """Raises each job's lowest logit."""
        scratch = self._scratch
        threshold_kernel[(self._num_jobs,)](
            *self._rows,
            self._num_blocks,
            scratch.peaks,
            scratch.units,
            scratch.group_peaks,
            scratch.active,
            scratch.listed,
            scratch.lowest,
            BLOCKS=self._padded,
            GROUPS=self._padded * GROUPS_IN_BLOCK,
            MASS=by_mass,
            num_warps=NUM_WARPS["threshold"],
            enable_fp_fusion=True,
        )

    def draw(self, draws: Tensor, num_draws: int, token_ids: Tensor) -> None:
        """Writes a token for each draw.

        Args:
            draws: int64 [NUM_DRAW_LINES, at least num_draws], the table of them.
            token_ids: int64, written at the draws' places.
        """
        scratch = self._scratch
        draw_kernel[(num_draws,)](
            *self._rows,
            draws,
            draws.shape[1],
            self._num_blocks,
            scratch.peaks,
            scratch.firsts,
            scratch.units,
            scratch.lowest,
            token_ids,
            scratch.firsts if self._counts is None else self._counts.counts,  # where nobody is counted, of no interest
            BLOCKS=self._padded,
            num_warps=NUM_WARPS["draw"],
            enable_fp_fusion=True,
        )

    def norms(self) -> Tensor:
        """float64 [J]: what logits lie above their log-probabilities."""
        norms = torch.empty(self._num_jobs, dtype=torch.float64, device=self._jobs.device)
        norms_kernel[(self._num_jobs,)](
            self._jobs,
            self._jobs.shape[1],
            self._num_blocks,
            self._scratch.peaks,
            self._scratch.units,
            norms,
            BLOCKS=self._padded,
            num_warps=NUM_WARPS["norms"],
            enable_fp_fusion=True,
        )
        return norms

    def list_likely(
        self, lists: Tensor, most: int, norms: Tensor, out_tokens: Tensor, out_logprobs: Tensor, *, best: bool
    ) -> None:
        """Writes the most likely tokens of some jobs, whose lowest logits have been searched for.

        Args:
            lists: int64 [4, L], the table of them.
            most: tokens of the longest of them, the last of COUNTS at most.
            norms: float64, see `norms`.
            out_tokens: integers, with out_logprobs (float32) written from each list's first place on.
            best: whether they are `num_best`'s.
        """
        count = next(count for count in COUNTS if most <= count)
        noted = torch.empty(lists.shape[1], 2 * count, dtype=torch.int64, device=lists.device)
        scratch = self._scratch
        likely_kernel[(lists.shape[1],)](
            *self._rows,
            lists,
            lists.shape[1],
            self._num_blocks,
            scratch.peaks,
            scratch.group_peaks,
            scratch.active,
            noted,
            scratch.lowest,
            norms,
            out_tokens,
            out_logprobs,
            BLOCKS=self._padded,
            GROUPS=self._padded * GROUPS_IN_BLOCK,
            COUNT=count,
            BEST=best,
            num_warps=NUM_WARPS["likely"],
            enable_fp_fusion=True,
        )

    def describe(self, described: Tensor, norms: Tensor, token_ids: Tensor, logprobs: Tensor, ranks: Tensor) -> None:
        """Writes what is asked of tokens.

        Args:
            described: int64 [2, P], the places of the tokens and the jobs of their rows.
            norms: float64 [J].
            token_ids: int64, where they are; nothing is written beside -1.
            logprobs, ranks: float32 and int32, like it.
        """
        num_places = described.shape[1]
        common = (described, num_places)
        logits, stride, _, _, jobs, width = self._rows
        logprobs_kernel[(num_places,)](
            logits,
            stride,
            jobs,
            width,
            *common,
            norms,
            token_ids,
            logprobs,
            ranks,
            num_warps=NUM_WARPS["logprobs"],
            enable_fp_fusion=True,
        )
        ranks_kernel[(num_places, self._num_blocks)](
            logits,
            stride,
            self._vocab_size,
            jobs,
            width,
            *common,
            self._num_blocks,
            self._scratch.peaks,
            token_ids,
            ranks,
            num_warps=NUM_WARPS["ranks"],
            enable_fp_fusion=True,
        )

    def _sum_again(self) -> None:
        scratch = self._scratch
        masses_kernel[(self._num_jobs, self._num_blocks)](
            *self._rows,
            self._num_blocks,
            scratch.peaks,
            scratch.units,
            scratch.lowest,
            num_warps=NUM_WARPS["masses"],
            enable_fp_fusion=True,
        )


def check_vocab_size(vocab_size: int) -> None:
    """
    Raises:
        KernelError: there are more tokens than the kernels can sum up.
    """
    if vocab_size > MAX_VOCAB_SIZE:
        raise KernelError(f"logits must be of {MAX_VOCAB_SIZE} tokens at most, got {vocab_size}.")
