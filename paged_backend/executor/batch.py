"""Lays a plan's sequences end to end as a decoder's input tensors. No loop over tokens runs in Python."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch

from paged_backend.kernels.interface import StepInputs
from paged_backend.scheduler.plan import ScheduledSequence


def build_inputs(sequences: Sequence[ScheduledSequence], block_size: int) -> StepInputs:
    """Tensors of one step.

    Args:
        sequences: at least one; each with a block table that covers its tokens.
        block_size: tokens in a block.
    """
    num_new = np.fromiter((len(sequence.token_ids) for sequence in sequences), np.int64, len(sequences))
    computed = np.fromiter((sequence.num_computed_tokens for sequence in sequences), np.int64, len(sequences))
    query_start = np.zeros(len(sequences) + 1, np.int64)
    np.cumsum(num_new, out=query_start[1:])
    num_tokens = int(query_start[-1])
    token_ids = np.fromiter(chain.from_iterable(s.token_ids for s in sequences), np.int64, num_tokens)
    block_tables = _block_tables(sequences)
    if num_tokens == len(sequences):
        positions, owners = computed, np.arange(num_tokens)
    else:
        owners = np.repeat(np.arange(len(sequences)), num_new)
        positions = np.arange(num_tokens) + (computed - query_start[:-1])[owners]
    blocks, offsets = np.divmod(positions, block_size)
    slots = block_tables[owners, blocks] * np.int64(block_size) + offsets
    sampling = np.fromiter((s.sampling is not None for s in sequences), np.bool_, len(sequences))
    rows = query_start[1:][sampling] - 1
    return StepInputs(
        token_ids=torch.from_numpy(token_ids),
        positions=torch.from_numpy(positions),
        slot_mapping=torch.from_numpy(slots),
        block_tables=torch.from_numpy(block_tables),
        query_start=torch.from_numpy(query_start.astype(np.int32)),
        context_lens=torch.from_numpy((computed + num_new).astype(np.int32)),
        logits_rows=None if len(rows) == num_tokens else torch.from_numpy(rows),
    )


def _block_tables(sequences: Sequence[ScheduledSequence]) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
    """int32 [S, longest table], padded with block 0, which is never read past a context's end."""
    lengths = np.fromiter((len(sequence.block_table) for sequence in sequences), np.int64, len(sequences))
    flat = np.fromiter(chain.from_iterable(s.block_table for s in sequences), np.int32, int(lengths.sum()))
    width = int(lengths.max())
    if len(flat) == width * len(sequences):
        return flat.reshape(len(sequences), width)
    tables = np.zeros((len(sequences), width), np.int32)
    tables[np.arange(width) < lengths[:, None]] = flat
    return tables
