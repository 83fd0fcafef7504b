"""Runs steps by hand, without a scheduler: what a sequence's logits are through the paged cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from paged_backend.executor.batch import BatchInputs
from paged_backend.executor.kv_storage import KVStorage
from paged_backend.kernels.interface import Kernels, StepInputs
from paged_backend.models.loader import LoadedModel
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import SamplingTask, ScheduledSequence, StepPlan

BLOCK_SIZE = 4
GREEDY = SamplingParams(temperature=0.0)


def scheduled(
    seq_id: int,
    tokens: Sequence[int],
    num_computed: int,
    block_table: Sequence[int],
    *,
    params: SamplingParams | None = GREEDY,
    seeds: tuple[int, ...] = (0,),
) -> ScheduledSequence:
    """A share of a step that computes all tokens past num_computed; params None means without sampling."""
    task = None if params is None else SamplingTask(params, seeds, tokens, tokens)
    return ScheduledSequence(seq_id, tokens[num_computed:], num_computed, block_table, task)


def chunked_logits(
    model: LoadedModel, kernels: Kernels, tokens: Sequence[int], chunks: Sequence[int], cache_dtype: str = "float32"
) -> Tensor:
    """Logits of every position, float32 [len(tokens), vocab_size], computed in chunks of given lengths.

    The blocks are scattered over the pool, so that an addressing error shows.
    """
    num_blocks, vocab_size = -(-len(tokens) // BLOCK_SIZE), model.architecture.vocab_size
    storage = KVStorage(model.local_architecture, 2 * num_blocks, BLOCK_SIZE, cache_dtype)
    for cache in storage.layers:
        cache.key_numbers().fill_(7)
        cache.value_numbers().fill_(7)
    table = [(5 * i + 3) % num_blocks * 2 + i % 2 for i in range(num_blocks)]
    if len(set(table)) < num_blocks:
        table = list(range(2 * num_blocks - 1, num_blocks - 1, -1))
    rows, done = [], 0
    with torch.inference_mode():
        run = kernels.compile(lambda kernels, inputs: model.decoder(kernels, inputs, storage.layers))
        for length in chunks:
            share = scheduled(0, tokens[: done + length], done, table, params=None)
            inputs = replace(build_inputs([share], BLOCK_SIZE), logits_rows=None)
            rows.append(run(model.shard.own_tokens(inputs, vocab_size))[:, :vocab_size].clone())
            done += length
    assert done == len(tokens)
    return torch.cat(rows)


def build_inputs(sequences: Sequence[ScheduledSequence], block_size: int) -> StepInputs:
    """The inputs of a step that stands alone; see `BatchInputs.build`."""
    return BatchInputs(block_size).build(StepPlan(tuple(sequences))).inputs
