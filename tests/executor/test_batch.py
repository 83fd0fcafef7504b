"""The tensors of a step, against the plan spelled out token by token."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from paged_backend.executor.batch import BatchInputs
from paged_backend.kv.layer_group import NO_BLOCK
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import NOT_DRAWN, NOT_YET_DRAWN, SamplingTask, ScheduledSequence, StepPlan
from tests.models.step_driver import build_inputs

TASK = SamplingTask(SamplingParams(), (0,), (), ())


def random_sequences(rng: random.Random, block_size: int, most_new: int) -> list[ScheduledSequence]:
    sequences = []
    blocks = rng.sample(range(1000), 400)
    for seq_id in range(rng.randrange(1, 9)):
        num_new, computed = rng.randrange(1, most_new + 1), rng.randrange(40)
        needed = -(-(num_new + computed) // block_size)
        table = [blocks.pop() for _ in range(needed + rng.randrange(2))]
        tokens = [rng.randrange(500) for _ in range(num_new)]
        sequences.append(ScheduledSequence(seq_id, tokens, computed, table, TASK if rng.random() < 0.6 else None))
    return sequences


@pytest.mark.parametrize("most_new", [1, 12])
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_build_inputs(block_size: int, most_new: int) -> None:
    rng = random.Random(block_size)
    for _ in range(30):
        sequences = random_sequences(rng, block_size, most_new)
        inputs = build_inputs(sequences, block_size)
        tokens, positions, slots, starts, rows = [], [], [], [0], []
        for row, sequence in enumerate(sequences):
            for offset, token in enumerate(sequence.token_ids):
                position = sequence.num_computed_tokens + offset
                tokens.append(token)
                positions.append(position)
                slots.append(sequence.block_table[position // block_size] * block_size + position % block_size)
            starts.append(len(tokens))
            if sequence.sampling is not None:
                rows.append(len(tokens) - 1)
            table = inputs.block_tables[row, : len(sequence.block_table)]
            assert table.tolist() == list(sequence.block_table)
        assert inputs.token_ids.tolist() == tokens
        assert inputs.positions.tolist() == positions
        assert inputs.slot_mapping.tolist() == slots
        assert inputs.query_start.tolist() == starts
        assert inputs.context_lens.tolist() == [s.num_computed_tokens + len(s.token_ids) for s in sequences]
        assert inputs.max_query_len == max(len(s.token_ids) for s in sequences)
        assert (inputs.logits_rows is None) == (len(rows) == len(tokens))
        if inputs.logits_rows is not None:
            assert inputs.logits_rows.tolist() == rows
        for tensor in (inputs.block_tables, inputs.query_start, inputs.context_lens):
            assert tensor.dtype == torch.int32
            assert tensor.is_contiguous()
        for tensor in (inputs.token_ids, inputs.positions, inputs.slot_mapping):
            assert tensor.dtype == torch.int64


@pytest.mark.parametrize("seed", range(6))
def test_kept_tables_are_those_made_afresh(seed: int) -> None:
    """Sequences come, leave and change places; tables grow, and blocks are replaced by copies."""
    rng = random.Random(seed)
    block_size = rng.choice([1, 3, 16])
    kept = BatchInputs(block_size)
    lines: list[ScheduledSequence] = []
    free = iter(range(1_000_000))
    for step in range(80):
        for line in lines:
            line.num_computed_tokens += len(line.token_ids)
        lines = [line for line in lines if rng.random() < 0.9]
        if rng.random() < 0.2:
            rng.shuffle(lines)
        while not lines or (len(lines) < 9 and rng.random() < 0.4):
            lines.insert(rng.randrange(len(lines) + 1), ScheduledSequence(step, [1], rng.randrange(60), [], TASK))
        copies = []
        for line in lines:
            num_new = rng.choice([1, 1, 1, 1, 7])
            line.token_ids = [rng.randrange(500) for _ in range(num_new)]
            line.sampling = TASK if rng.random() < 0.9 else None
            table = line.block_table
            assert isinstance(table, list)
            written = line.num_computed_tokens // block_size
            if written < len(table) and rng.random() < 0.05:
                copies.append((table[written], next(free)))
                table[written] = copies[-1][1]
            needed = -(-(line.num_computed_tokens + num_new) // block_size) + rng.choice([0, 0, 2])
            table.extend(next(free) for _ in range(needed - len(table)))
        inputs = kept.build(StepPlan(tuple(lines), tuple(copies))).inputs
        fresh = build_inputs(lines, block_size)
        for name in ("token_ids", "positions", "slot_mapping", "query_start", "context_lens"):
            assert getattr(inputs, name).tolist() == getattr(fresh, name).tolist(), name
        assert (inputs.logits_rows is None) == (fresh.logits_rows is None)
        if inputs.logits_rows is not None and fresh.logits_rows is not None:
            assert inputs.logits_rows.tolist() == fresh.logits_rows.tolist()
        assert inputs.block_tables.is_contiguous()
        for row, line in enumerate(lines):
            num_read = -(-(line.num_computed_tokens + len(line.token_ids)) // block_size)
            assert inputs.block_tables[row, :num_read].tolist() == list(line.block_table)[:num_read]


@pytest.mark.parametrize("seed", range(6))
def test_tokens_that_the_step_before_draws(seed: int) -> None:
    """Whoever comes, leaves, or computes a chunk: each gets the token that was drawn for it."""
    rng = random.Random(seed)
    kept = BatchInputs(4)
    lines: list[ScheduledSequence] = []
    drawing: list[ScheduledSequence] = []
    num_drawn_tokens = 0
    for step in range(60):
        drawn = torch.tensor([rng.randrange(500) for _ in drawing], dtype=torch.int64)
        token_of = dict(zip(drawing, drawn.tolist(), strict=True))
        if rng.random() < 0.5:
            lines = [line for line in lines if rng.random() < 0.8]
            rng.shuffle(lines)
        while not lines or (len(lines) < 9 and rng.random() < 0.3):
            lines.insert(rng.randrange(len(lines) + 1), ScheduledSequence(step, [1], 0, list(range(200)), TASK))
        wanted = []
        for line in lines:
            line.num_computed_tokens += len(line.token_ids)
            if line in token_of and rng.random() < 0.9:
                line.token_ids = (NOT_YET_DRAWN,)
                wanted.append(token_of[line])
                num_drawn_tokens += 1
            else:
                line.token_ids = [rng.randrange(500) for _ in range(rng.choice([1, 1, 3]))]
                wanted += line.token_ids
            line.sampling = TASK if rng.random() < 0.8 else None
        built = kept.build(StepPlan(tuple(lines)))
        built = built.with_tensors([tensor.clone() for tensor in built.tensors])
        drawing = [line for line in lines if line.sampling is not None]
        for line in lines:
            line.sampling = None  # a plan is read when it is built
        assert built.with_tokens(drawn).token_ids.tolist() == wanted
        nobody = built.with_tokens(torch.full((9,), NOT_DRAWN)).token_ids
        assert min(nobody.tolist()) >= 0
    assert num_drawn_tokens > 100


@pytest.mark.parametrize("seed", range(3))
def test_groups_are_as_many_single_ones(seed: int) -> None:
    """The tables of three groups, one of which leaves blocks behind, against three that are built each by itself."""
    rng = random.Random(seed)
    block_size, num_groups = rng.choice([1, 3, 16]), 3
    kept = BatchInputs(block_size, num_groups)
    lines: list[ScheduledSequence] = []
    free = iter(range(1_000_000))
    for step in range(60):
        for line in lines:
            line.num_computed_tokens += len(line.token_ids)
        lines = [line for line in lines if rng.random() < 0.9]
        while not lines or (len(lines) < 6 and rng.random() < 0.4):
            lines.insert(rng.randrange(len(lines) + 1), ScheduledSequence(step, [1], rng.randrange(60), [], TASK))
        for line in lines:
            line.token_ids = [5] * rng.choice([1, 1, 1, 9])
            table = line.block_table
            assert isinstance(table, list)
            needed = -(-(line.num_computed_tokens + len(line.token_ids)) // block_size) * num_groups
            table.extend(next(free) for _ in range(needed - len(table)))
            num_left = max(0, line.num_computed_tokens - 20) // block_size
            table[1 : num_left * num_groups : num_groups] = [NO_BLOCK] * num_left
        inputs = kept.build(StepPlan(tuple(lines))).inputs
        num_tokens, num_seqs = len(inputs.token_ids), len(lines)
        for group in range(num_groups):
            own = [replace(line, block_table=line.block_table[group::num_groups]) for line in lines]
            single = build_inputs(own, block_size)
            assert inputs.slot_mapping.tolist()[group * num_tokens :][:num_tokens] == single.slot_mapping.tolist()
            tables = inputs.block_tables[group * num_seqs :][:num_seqs]
            for row, line in enumerate(own):
                wanted = torch.tensor(line.block_table)
                is_used = wanted != NO_BLOCK
                assert torch.equal(tables[row, : len(wanted)][is_used].long(), wanted[is_used])
        assert inputs.block_tables.is_contiguous() and inputs.slot_mapping.is_contiguous()


def test_tables_shrink_when_long_sequences_leave() -> None:
    kept = BatchInputs(1)
    long, short = (ScheduledSequence(i, [1], length - 1, list(range(length)), TASK) for i, length in ((0, 900), (1, 5)))
    assert kept.build(StepPlan((long, short))).inputs.block_tables.shape[1] >= 900
    assert kept.build(StepPlan((short,))).inputs.block_tables.shape[1] < 20
