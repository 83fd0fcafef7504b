"""Lays a plan's sequences end to end as a decoder's input tensors. No loop over tokens runs in Python."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch

from paged_backend.kernels.interface import StepInputs
from paged_backend.scheduler.plan import NOT_YET_DRAWN, ScheduledSequence, StepPlan

_Ints = np.ndarray[Any, np.dtype[np.int64]]

_WIDTH_STEP = 8
"""Columns of block tables come by that many."""


@dataclass(frozen=True, slots=True)
class BuiltInputs:
    """A step's inputs, but for tokens that the step before draws.

    Attributes:
        inputs: NOT_YET_DRAWN stands for such tokens.
        sources: int64 [T]: which of the tokens that the step before draws takes a token's place; -1 for none. None
            where all tokens are known.
    """

    inputs: StepInputs
    sources: torch.Tensor | None

    def lent(self, lend: Callable[[torch.Tensor], torch.Tensor]) -> BuiltInputs:
        """All tensors through `Device.lend`."""
        inputs, logits_rows = self.inputs, self.inputs.logits_rows
        return BuiltInputs(
            StepInputs(
                token_ids=lend(inputs.token_ids),
                positions=lend(inputs.positions),
                slot_mapping=lend(inputs.slot_mapping),
                block_tables=lend(inputs.block_tables),
                query_start=lend(inputs.query_start),
                context_lens=lend(inputs.context_lens),
                logits_rows=None if logits_rows is None else lend(logits_rows),
                max_query_len=inputs.max_query_len,
            ),
            None if self.sources is None else lend(self.sources),
        )

    def with_tokens(self, drawn: torch.Tensor | None) -> StepInputs:
        """The step's inputs.

        Args:
            drawn: int64 [N], what the step before drew; None where it failed: then nobody is left who needs it, nor
                what could not be drawn.
        """
        inputs, sources = self.inputs, self.sources
        if sources is None:
            return inputs
        if drawn is None or drawn.shape[0] == 0:
            token_ids = inputs.token_ids.clamp(min=0)
        else:
            token_ids = torch.where(sources < 0, inputs.token_ids, drawn[sources.clamp(min=0)].clamp(min=0))
        return dataclasses.replace(inputs, token_ids=token_ids)


class BatchInputs:
    """Makes each step's inputs, and keeps the block tables of the sequences in between.

    Row s of each group's tables is sequence s of the latest plan. While a sequence stays, its row is read again only
    where a token needs a block that is not in it yet, or blocks were copied. The tensors that `build` gives are lent
    until the next `build`.

    Args:
        block_size: tokens in a block.
        num_groups: groups of layers, each with its own blocks of a sequence.
    """

    def __init__(self, block_size: int, num_groups: int = 1) -> None:
        self._block_size = block_size
        self._num_groups = num_groups
        self._lines: tuple[ScheduledSequence, ...] = ()
        self._drawing: list[bool] = []  # which of them the latest plan draws for
        self._tables = np.zeros((num_groups, 0, 0), np.int32)
        self._num_blocks = np.zeros(0, np.int64)  # entries of each row that are right, or left behind by the window

    def build(self, plan: StepPlan) -> BuiltInputs:
        """Tensors of a step with at least one sequence."""
        lines = plan.sequences
        num_seqs = len(lines)
        computed = np.array([line.num_computed_tokens for line in lines], np.int64)
        num_tokens = plan.num_tokens
        if num_tokens == num_seqs:
            known = [line.token_ids[0] for line in lines]
            query_start = np.arange(num_seqs + 1)
            owners = query_start[:-1]
            positions = computed
            blocks = last_blocks = positions // self._block_size
            ends = computed + 1
            max_query_len = 1
        else:
            known = list(chain.from_iterable([line.token_ids for line in lines]))
            num_new = np.array([len(line.token_ids) for line in lines], np.int64)
            query_start = np.zeros(num_seqs + 1, np.int64)
            np.cumsum(num_new, out=query_start[1:])
            owners = np.repeat(np.arange(num_seqs), num_new)
            positions = np.arange(num_tokens) + (computed - query_start[:-1])[owners]
            blocks = positions // self._block_size
            last_blocks = blocks[query_start[1:] - 1]
            ends = computed + num_new
            max_query_len = int(num_new.max())
        token_ids = np.array(known, np.int64)
        sources = self._sources(lines, token_ids, query_start[:-1]) if token_ids.min() < 0 else None
        self._drawing = [line.sampling is not None for line in lines]
        self._update_tables(plan, computed // self._block_size, last_blocks)
        slots = (self._tables[:, owners, blocks] - blocks) * self._block_size + positions
        inputs = StepInputs(
            token_ids=torch.from_numpy(token_ids),
            positions=torch.from_numpy(positions),
            slot_mapping=torch.from_numpy(slots.reshape(-1)),
            block_tables=torch.from_numpy(self._tables.reshape(-1, self._tables.shape[2])),
            query_start=torch.from_numpy(query_start.astype(np.int32)),
            context_lens=torch.from_numpy(ends.astype(np.int32)),
            logits_rows=_logits_rows(plan, query_start, self._drawing),
            max_query_len=max_query_len,
        )
        return BuiltInputs(inputs, sources)

    def _sources(self, lines: tuple[ScheduledSequence, ...], token_ids: _Ints, first_rows: _Ints) -> torch.Tensor:
        """For each token that is not drawn yet, which it is among those that the latest plan draws; -1 elsewhere."""
        unknown = token_ids[first_rows] == NOT_YET_DRAWN
        places = np.where(self._drawing, np.cumsum(self._drawing) - 1, -1)
        sources = np.full(len(token_ids), -1)
        sources[first_rows[unknown]] = places[self._rows_before(lines)[unknown]]
        assert (sources >= 0).sum() == unknown.sum(), "a token that nobody draws"
        return torch.from_numpy(sources)

    def _rows_before(self, lines: tuple[ScheduledSequence, ...]) -> _Ints:
        """The rows that they have now; -1 for new ones."""
        if lines == self._lines:
            return np.arange(len(lines))
        row_of = {line: row for row, line in enumerate(self._lines)}
        return np.array([row_of.get(line, -1) for line in lines])

    def _update_tables(self, plan: StepPlan, first_blocks: _Ints, last_blocks: _Ints) -> None:
        """Brings the tables up to date for a step that writes columns first_blocks[s] to last_blocks[s] of row s."""
        lines = plan.sequences
        if lines != self._lines:
            self._rearrange(lines)
        if plan.block_copies:  # each stands in the place of the first block that its sequence writes to
            np.minimum(self._num_blocks, first_blocks, out=self._num_blocks)
        stale = (last_blocks >= self._num_blocks).nonzero()[0].tolist()
        if not stale:
            return
        num_groups = self._num_groups
        lengths = [len(lines[row].block_table) // num_groups for row in stale]
        width = max(lengths)
        if width > self._tables.shape[2]:
            self._tables = _widened(self._tables, width)
        rows: list[int] = []
        columns: list[int] = []
        blocks: list[int] = []
        for row, have in zip(stale, self._num_blocks[stale].tolist(), strict=True):
            new = lines[row].block_table[have * num_groups :]
            end = have + len(new) // num_groups
            rows += [row] * (end - have)
            columns += range(have, end)
            blocks += new
        for group, tables in enumerate(self._tables):
            tables[rows, columns] = blocks[group::num_groups]
        self._num_blocks[stale] = lengths

    def _rearrange(self, lines: tuple[ScheduledSequence, ...]) -> None:
        """Moves the rows of sequences that stay to where they are in the new plan; the others' count as empty."""
        rows = self._rows_before(lines)
        new = rows < 0
        num_blocks = np.zeros(len(lines), np.int64)
        if self._lines:
            num_blocks = np.where(new, 0, self._num_blocks[rows])
            width = min(_round_up(int(num_blocks.max())), self._tables.shape[2])
            self._tables = self._tables[:, :, :width].take(rows, axis=1)
        else:
            self._tables = np.zeros((self._num_groups, len(lines), 0), np.int32)
        self._num_blocks = num_blocks
        self._lines = lines


def build_inputs(sequences: Sequence[ScheduledSequence], block_size: int) -> StepInputs:
    """The inputs of a step that stands alone; see `BatchInputs.build`."""
    return BatchInputs(block_size).build(StepPlan(tuple(sequences))).inputs


def _widened(tables: np.ndarray[Any, np.dtype[np.int32]], width: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    wide = np.zeros((*tables.shape[:2], _round_up(width)), np.int32)
    wide[:, :, : tables.shape[2]] = tables
    return wide


def _round_up(width: int) -> int:
    return -(-width // _WIDTH_STEP) * _WIDTH_STEP


def _logits_rows(plan: StepPlan, query_start: _Ints, drawing: list[bool]) -> torch.Tensor | None:
    """The last row of each sequence that draws, then those that score prompts; None where the former are all."""
    if plan.num_tokens == len(drawing) and all(drawing) and not plan.scoring:
        return None
    rows = [query_start[1:][np.array(drawing)] - 1]
    for task in plan.scoring:
        first = query_start[task.line] + task.offset
        rows.append(np.arange(first, first + len(task.token_ids)))
    return torch.from_numpy(np.concatenate(rows))
