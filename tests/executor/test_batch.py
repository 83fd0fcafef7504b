"""The tensors of a step, against the plan spelled out token by token."""

from __future__ import annotations

import random

import pytest
import torch

from paged_backend.executor.batch import build_inputs
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import SamplingTask, ScheduledSequence

TASK = SamplingTask(SamplingParams(), (0,), 1, (), ())


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
        assert (inputs.logits_rows is None) == (len(rows) == len(tokens))
        if inputs.logits_rows is not None:
            assert inputs.logits_rows.tolist() == rows
        for tensor in (inputs.block_tables, inputs.query_start, inputs.context_lens):
            assert tensor.dtype == torch.int32
            assert tensor.is_contiguous()
        for tensor in (inputs.token_ids, inputs.positions, inputs.slot_mapping):
            assert tensor.dtype == torch.int64
