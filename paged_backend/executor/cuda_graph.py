"""Decode steps recorded once for each of some sizes, and replayed: one launch in place of hundreds."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from paged_backend.executor.batch import BuiltInputs
from paged_backend.executor.device import Device
from paged_backend.kernels.interface import StepInputs


def default_capture_sizes(max_num_seqs: int) -> tuple[int, ...]:
    """Batch sizes to record: 1, 2, 4, then by 8 up to 256, then by 16, and max_num_seqs itself, at most 512.

    vLLM's: few enough to record in seconds, near enough to each other that little is computed for nobody.
    """
    largest = min(max_num_seqs, 512)
    sizes = {1, 2, 4, *range(8, 257, 8), *range(272, 513, 16), largest}
    return tuple(sorted(size for size in sizes if size <= largest))


@dataclass(frozen=True, slots=True)
class ScratchBlocks:
    """Blocks of the cache that are nobody's: rows that fill up a batch write there.

    Attributes:
        first: the lowest of their ids; the others follow.
        count: how many.
        block_size: tokens in a block.
    """

    first: int
    count: int
    block_size: int

    @property
    def num_slots(self) -> int:
        """Of all."""
        return self.count * self.block_size

    @staticmethod
    def behind(num_blocks: int, sizes: Sequence[int], block_size: int) -> ScratchBlocks:
        """As many behind a pool as batches that are filled up to these sizes want."""
        most = max([size - before - 1 for before, size in zip((0, *sizes), sizes, strict=False)], default=0)
        return ScratchBlocks(num_blocks, -(-max(most, 1) // block_size), block_size)


class GraphedStep:
    """A compiled step, of which decodes are replayed from graphs: calls it for everything else.

    A decode step of n sequences is computed as one of the next larger size. Rows after the n-th are sequences of one
    token that lie in scratch blocks, so that they touch nobody's cache; their logits are not given out. What is
    recorded depends on shapes alone: lengths, tables and tokens are read on the device when it is replayed.

    Args:
        step: inputs on the device to logits.
        device: records.
        drawn: int64 [N], where every step before leaves the tokens that it draws.
        sizes: ascending.
        num_groups: of layers.
        max_blocks: columns that a block table has at most.
        scratch: of the cache that the step computes on.
        shows_progress: a bar while it records.
    """

    def __init__(
        self,
        step: Callable[[StepInputs], Tensor],
        device: Device,
        drawn: Tensor,
        sizes: Sequence[int],
        *,
        num_groups: int,
        max_blocks: int,
        scratch: ScratchBlocks,
        shows_progress: bool = True,
    ) -> None:
        assert list(sizes) == sorted(set(sizes)) and sizes[0] >= 1
        self._step = step
        self._drawn = drawn
        self._sizes = tuple(sizes)
        # Largest first: smaller ones find room in the memory that it takes.
        order: Iterable[int] = reversed(self._sizes)
        if shows_progress:
            order = tqdm(list(order), desc="Recording decode steps", unit="size")
        tables = torch.zeros(num_groups * sizes[-1] * max_blocks, dtype=torch.int32, device=device.torch_device)
        self._graphs = {
            size: _Graph(
                step, device, drawn, tables[: num_groups * size * max_blocks].view(num_groups, size, -1), scratch
            )
            for size in order
        }

    def __call__(self, built: BuiltInputs) -> Tensor:
        """The logits of a step, as its own memory until the next call."""
        num_rows = built.columns.shape[1]
        if built.max_query_len != 1 or built.logits_rows is not None or num_rows > self._sizes[-1]:
            return self._step(built.with_tokens(self._drawn))
        return self._graphs[self._sizes[bisect_left(self._sizes, num_rows)]].replay(built)


class _Graph:
    """A step of one size, on inputs that stay where they are.

    Args:
        tables: int32 [groups, size, blocks], the memory of other sizes too.
    """

    def __init__(
        self,
        step: Callable[[StepInputs], Tensor],
        device: Device,
        drawn: Tensor,
        tables: Tensor,
        scratch: ScratchBlocks,
    ) -> None:
        where, (num_groups, size, _) = tables.device, tables.shape
        # Of those that fill up a batch each has a slot of its own; only the recording has more of them.
        slots = scratch.first * scratch.block_size + torch.arange(size - 1, -1, -1) % scratch.num_slots
        self._blocks_of_nobody = (slots // scratch.block_size).to(where, torch.int32)
        self._nobody = torch.cat([torch.zeros(3, size, dtype=torch.int64), slots.repeat(num_groups, 1)]).to(where)
        self._columns = self._nobody.clone()
        self._num_used = 0  # rows that may be somebody's
        self._tables = tables
        self._tables[:, :, 0] = self._blocks_of_nobody
        query_start = torch.arange(size + 1, dtype=torch.int32).to(where)

        def decode() -> Tensor:
            columns = self._columns
            lengths = (columns[1] + 1).int()  # a decode's token is its sequence's last
            built = BuiltInputs(columns, tables.view(-1, tables.shape[2]), query_start, lengths, None, 1, True)
            return step(built.with_tokens(drawn))

        self._replay = device.capture(decode)

    def replay(self, built: BuiltInputs) -> Tensor:
        """The logits of inputs of its size or fewer rows."""
        columns, tables = self._columns, self._tables
        num_rows = built.columns.shape[1]
        num_groups, size, max_blocks = tables.shape
        new = built.block_tables.view(num_groups, num_rows, -1)[:, :, :max_blocks]  # made wider than need be
        columns[:, :num_rows] = built.columns
        if num_rows < self._num_used:
            columns[:, num_rows : self._num_used] = self._nobody[:, num_rows : self._num_used]
        self._num_used = num_rows
        tables[:, :num_rows, : new.shape[2]] = new
        if num_rows < size:
            tables[:, num_rows:, 0] = self._blocks_of_nobody[num_rows:]
        return self._replay()[:num_rows]
