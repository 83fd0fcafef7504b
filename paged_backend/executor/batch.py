"""Lays a plan's sequences end to end as a decoder's input tensors. No loop over tokens runs in Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch

from paged_backend.kernels.interface import StepInputs
from paged_backend.scheduler.plan import NOT_YET_DRAWN, ScheduledSequence, StepPlan

_Ints = np.ndarray[Any, np.dtype[np.int64]]

_WIDTH_STEP = 8
"""Columns of block tables come by that many."""


_TOKENS, _POSITIONS, _SOURCES, _SLOTS = range(4)
"""Rows of `BuiltInputs.columns`; slots are the last, a row for each group of layers."""


@dataclass(frozen=True, slots=True)
class BuiltInputs:
    """A step's inputs, but for tokens that the step before draws.

    Attributes:
        columns: int64 [3 + groups, T]: for each token its id (NOT_YET_DRAWN stands for one that is not known yet), its
            position, which of the tokens that the step before draws takes its place if it is not known, and its slots.
        block_tables, query_start, context_lens, logits_rows, max_query_len: see `StepInputs`.
        has_unknown: whether any token is not known yet.
    """

    columns: torch.Tensor
    block_tables: torch.Tensor
    query_start: torch.Tensor
    context_lens: torch.Tensor
    logits_rows: torch.Tensor | None
    max_query_len: int
    has_unknown: bool

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All of them."""
        tensors = (self.columns, self.block_tables, self.query_start, self.context_lens)
        return tensors if self.logits_rows is None else (*tensors, self.logits_rows)

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> BuiltInputs:
        """The same, with others in the places of `tensors`."""
        columns, tables, query_start, context_lens, *rows = tensors
        logits_rows = rows[0] if rows else None
        return BuiltInputs(
            columns, tables, query_start, context_lens, logits_rows, self.max_query_len, self.has_unknown
        )

    @property
    def inputs(self) -> StepInputs:
        """The step's inputs as they are; views."""
        token_ids, positions, _, *slots = self.columns.unbind()
        return StepInputs(
            token_ids=token_ids,
            positions=positions,
            slot_mapping=slots[0] if len(slots) == 1 else self.columns[_SLOTS:].view(-1),
            block_tables=self.block_tables,
            query_start=self.query_start,
            context_lens=self.context_lens,
            logits_rows=self.logits_rows,
            max_query_len=self.max_query_len,
        )

    def with_tokens(self, drawn: torch.Tensor) -> StepInputs:
        """The step's inputs, where the tensors are.

        Args:
            drawn: int64 [N], what the step before drew. What it could not draw is nobody's any more.
        """
        if not self.has_unknown:
            return self.inputs
        token_ids = self.columns[_TOKENS]
        found = drawn.index_select(0, self.columns[_SOURCES])
        return replace(self.inputs, token_ids=torch.where(token_ids < 0, found, token_ids).clamp_(min=0))


class BatchInputs:
    """Makes each step's inputs, and keeps the block tables of the sequences in between.

    Row s of each group's tables is sequence s of the latest plan. While a sequence stays, its row is read again only
    where a token needs a block that is not in it yet, or blocks were copied. The tables that `build` gives are lent
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
        columns = np.empty((_SLOTS + self._num_groups, num_tokens), np.int64)
        columns[_TOKENS] = token_ids = np.array(known, np.int64)
        columns[_POSITIONS] = positions
        columns[_SOURCES] = 0
        has_unknown = bool(token_ids.min() < 0)
        if has_unknown:
            self._find_sources(lines, columns, query_start[:-1])
        self._drawing = [line.sampling is not None for line in lines]
        self._update_tables(plan, computed // self._block_size, last_blocks)
        first_slots = (self._tables[:, owners, blocks] - blocks) * self._block_size
        np.add(first_slots, positions, out=columns[_SLOTS:])
        return BuiltInputs(
            columns=torch.from_numpy(columns),
            block_tables=torch.from_numpy(self._tables.reshape(-1, self._tables.shape[2])),
            query_start=torch.from_numpy(query_start.astype(np.int32)),
            context_lens=torch.from_numpy(ends.astype(np.int32)),
            logits_rows=_logits_rows(plan, query_start, self._drawing),
            max_query_len=max_query_len,
            has_unknown=has_unknown,
        )

    def _find_sources(self, lines: tuple[ScheduledSequence, ...], columns: _Ints, first_rows: _Ints) -> None:
        """Notes, for each token that is not drawn yet, which it is among those that the latest plan draws."""
        unknown = columns[_TOKENS, first_rows] == NOT_YET_DRAWN
        places = np.where(self._drawing, np.cumsum(self._drawing) - 1, -1)
        sources = places[self._rows_before(lines)[unknown]]
        assert (sources >= 0).all(), "a token that nobody draws"
        columns[_SOURCES, first_rows[unknown]] = sources

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
