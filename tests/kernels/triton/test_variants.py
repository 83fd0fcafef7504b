"""Triton compiles a kernel when it is launched as it has not been before, which takes seconds: so a start launches all
that serving does, whatever the steps' sizes turn out to be.

Nothing is computed here: launches are written down.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
import torch

from paged_backend.executor.batch import BatchInputs
from paged_backend.executor.cuda_graph import default_capture_sizes
from paged_backend.executor.largest_step import largest_step, smaller_steps
from paged_backend.kernels.interface import Kernels, Rows, StepInputs
from paged_backend.kernels.sampling_batch import LogitChanges, SamplingBatch
from paged_backend.kernels.token_counts import TokenCounts
from paged_backend.kernels.triton.blocks import copy_blocks, swap_blocks
from paged_backend.kernels.triton.kernels import TritonKernels
from paged_backend.kernels.triton.sampling.launch import launch
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import SamplingTask, ScheduledSequence, StepPlan
from tests.kernels.experts_case import make_experts
from tests.kernels.linear_case import make_weight
from tests.kernels.step_case import make_cache
from tests.kernels.triton.placed import placed_cache
from tests.kernels.triton.variants import Variant, recorded

BLOCK_SIZE, NUM_GROUPS, MAX_MODEL_LEN = 16, 2, 2000
NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE, HIDDEN, NUM_EXPERTS = 4, 2, 64, 256, 8


class Layers:
    """A layer of every kind, in two groups of layers, one with a window."""

    def __init__(self, kernels: TritonKernels, weights: str) -> None:
        def pack(num_outputs: int, num_inputs: int, *, gated: bool = False) -> Any:
            return kernels.pack_linear(make_weight(weights, num_outputs, num_inputs), gated=gated)

        width = NUM_HEADS * HEAD_SIZE
        self.table = torch.randn(100, HIDDEN).to(kernels.device)
        self.norm = torch.randn(HIDDEN).to(kernels.device)
        self.angles = torch.randn(MAX_MODEL_LEN, HEAD_SIZE).to(kernels.device)
        self.qkv, self.outer = pack(width + 2 * NUM_KV_HEADS * HEAD_SIZE, HIDDEN), pack(HIDDEN, width)
        self.wide, self.narrow = pack(2 * 512, HIDDEN, gated=True), pack(HIDDEN, 512)
        self.router = kernels.pack_linear(make_weight("float32", NUM_EXPERTS, HIDDEN))
        self.experts = kernels.pack_experts(*make_experts(weights, NUM_EXPERTS, HIDDEN, 64))
        self.head = pack(1003, HIDDEN)
        dtype = str(kernels.dtype).removeprefix("torch.")
        cache = make_cache(dtype, 300, NUM_KV_HEADS, BLOCK_SIZE, HEAD_SIZE, token_major_keys=True)
        self.caches = [
            dataclasses.replace(placed_cache(cache, kernels.device), group=group) for group in range(NUM_GROUPS)
        ]

    def step(self, kernels: Kernels, inputs: StepInputs) -> Rows:
        hidden = kernels.embedding(self.table, "token_ids", inputs)
        for cache in self.caches:
            qkv = kernels.linear(kernels.rms_norm(hidden, self.norm, 1e-6), self.qkv)
            query = kernels.qkv_to_cache(qkv, cache, inputs, num_heads=NUM_HEADS, rotary=(self.angles, self.angles))
            seen = kernels.paged_attention(query, cache, inputs, scale=0.1, sliding_window=33 * cache.group)
            hidden = kernels.linear(seen, self.outer, residual=hidden)
            wide = kernels.linear(kernels.rms_norm(hidden, self.norm, 1e-6), self.wide, activation="silu")
            hidden = kernels.linear(wide, self.narrow, residual=hidden)
            normed = kernels.rms_norm(hidden, self.norm, 1e-6)
            logits = kernels.linear(normed, self.router)
            options: dict[str, Any] = {"num_experts_per_tok": 2, "norm_topk_prob": True, "activation": "silu"}
            hidden = kernels.experts(normed, logits, self.experts, **options, residual=hidden)
        return kernels.linear(kernels.rms_norm(kernels.select_rows(hidden, inputs), self.norm, 1e-6), self.head)


def random_plan(random: random.Random, max_num_seqs: int, max_num_tokens: int) -> StepPlan:
    """Decodes, prompts, chunks of them, or all of it; some draw nothing yet."""
    left, lines = max_num_tokens, []
    most = random.choice([1, 1, 20, max_num_tokens])
    for number in range(random.randint(1, max_num_seqs)):
        num_tokens = min(random.randint(1, random.choice([1, most])), left, MAX_MODEL_LEN)
        if num_tokens:
            computed = random.randint(0, MAX_MODEL_LEN - num_tokens)
            num_blocks = -(-(computed + num_tokens) // BLOCK_SIZE) * NUM_GROUPS
            tokens = [0] * num_tokens
            task = SamplingTask(SamplingParams(), (0,), tokens, tokens) if random.random() < 0.8 else None
            lines.append(ScheduledSequence(number, tokens, computed, [0] * num_blocks, task))
        left -= num_tokens
    return StepPlan(tuple(lines))


def decodes(size: int) -> StepInputs:
    """What a graph is recorded with: tables as wide as a context may be."""
    plan = StepPlan(tuple(ScheduledSequence(number, [0], 0, [0] * NUM_GROUPS, None) for number in range(size)))
    inputs = BatchInputs(BLOCK_SIZE, NUM_GROUPS).build(plan).inputs
    tables = torch.zeros(NUM_GROUPS * size, -(-MAX_MODEL_LEN // BLOCK_SIZE), dtype=torch.int32)
    return dataclasses.replace(inputs, block_tables=tables, logits_rows=None)


def new_kinds(later: set[Variant], start: set[Variant]) -> list[str]:
    """Of variants that a start has not seen, in what they differ from the one next to them."""

    def difference(variant: Variant) -> list[str]:
        seen = [other for other in start if other[0] == variant[0]]
        differences = [[new for new, old in zip(variant, other, strict=True) if new != old] for other in seen]
        return min(differences, key=len, default=["never launched"])

    return [f"{variant[0]}: {difference(variant)}" for variant in later - start]


@pytest.mark.parametrize(
    ("dtype", "weights", "batch_invariant", "max_num_seqs", "enforce_eager"),
    [
        (torch.float32, "float32", False, 12, False),
        (torch.float16, "float32", True, 6, True),
        (torch.float16, "int8/row", False, 64, True),
        (torch.float16, "int4/64", True, 3, False),
    ],
    ids=str,
)
def test_steps(
    device: torch.device,
    dtype: torch.dtype,
    weights: str,
    batch_invariant: bool,
    max_num_seqs: int,
    enforce_eager: bool,
) -> None:
    max_num_tokens = 1500
    kernels = TritonKernels(device, dtype, batch_invariant=batch_invariant)
    run = kernels.compile(Layers(kernels, weights).step)
    batch = BatchInputs(BLOCK_SIZE, NUM_GROUPS)

    def compute(plan: StepPlan) -> None:
        built = batch.build(plan)
        run(built.with_tensors([tensor.clone().to(device) for tensor in built.tensors]).inputs)

    sizes = (max_num_seqs, max_num_tokens, MAX_MODEL_LEN, NUM_GROUPS, BLOCK_SIZE)
    with recorded() as start:
        for plan in (*smaller_steps(*sizes), largest_step(*sizes)):
            compute(plan)
        for size in () if enforce_eager else default_capture_sizes(max_num_seqs):
            run(decodes(size))
    generator = random.Random(weights)
    with recorded() as later:
        for _ in range(40):
            compute(random_plan(generator, max_num_seqs, max_num_tokens))
    assert len(later) > 10 and not new_kinds(later, start)


def random_batch(random: random.Random, num_rows: int, vocab_size: int, counts: TokenCounts) -> SamplingBatch:
    """Whatever may be asked of rows."""

    def column(*values: Any) -> list[Any]:
        return [random.choice(values) for _ in range(num_rows)]

    changes = {
        row: LogitChanges(
            allowed_token_ids=random.choice([None, [1] * random.randint(1, 9)]),
            logit_bias=random.choice([{}, {0: 1.0}]),
            presence_penalty=random.choice([0.0, 1.0]),
            output_token_ids=[0] * random.randint(0, 9),
            token_mask=random.choice([-1, 0]),
        )
        for row in range(num_rows)
        if random.random() < 0.3
    }
    num_best = column(0, 0, 4, 18) if random.random() < 0.3 else []
    seeds = column((1,), (1,), (1, 2))
    if random.random() < 0.5:
        changes = {}
    counted: list[int] = []
    if not num_best and random.random() < 0.5:
        are_counted = [len(seeds[row]) == 1 and row not in changes for row in range(num_rows)]
        counted = [row if is_counted else -1 for row, is_counted in enumerate(are_counted)]
    return SamplingBatch(
        seeds=[() if best else seeds for best, seeds in zip(num_best, seeds, strict=True)] if num_best else seeds,
        temperatures=column(0.0, 1.0),
        positions=column(3),
        top_k=column(0, 5),
        top_p=column(1.0, 0.5),
        min_p=column(0.0, 0.1),
        num_logprobs=column(-1, 0, 1, 5, 20) if random.random() < 0.7 else [],
        num_best=num_best,
        changes=changes,
        token_masks=torch.zeros(random.randint(1, 3), -(-vocab_size // 32), dtype=torch.int32),
        counted=counted,
        token_counts=counts,
    )


@pytest.mark.parametrize("vocab_size", [5008, 5003])
def test_sampling_and_moves_of_blocks(device: torch.device, vocab_size: int) -> None:
    """Prompts that are scored have rows behind those that are drawn from."""
    kernels = TritonKernels(device, torch.float16)
    with recorded() as start:
        kernels.warm_up(vocab_size)
    generator = random.Random(vocab_size)
    logits = torch.zeros(40, vocab_size, device=device)
    counts = TokenCounts.make(40, vocab_size, device)
    storage = torch.zeros(3, 2, 2, 192, dtype=torch.uint8, device=device)
    with recorded() as later:
        for num_pairs in (1, 2, 16, 17, 300):
            pairs = torch.zeros(num_pairs, 2, dtype=torch.int64, device=device)
            copy_blocks(storage, pairs)
            for inwards in (False, True):
                slots = torch.zeros(num_pairs, 3, 2, 192, dtype=torch.uint8, pin_memory=device.type == "cuda")
                swap_blocks(storage, slots, pairs, inwards)
        for _ in range(60):
            num_rows = generator.randint(1, 30)
            launch(logits[:num_rows], random_batch(generator, num_rows, vocab_size, counts))
            scored = logits[generator.randint(1, 9) :][:num_rows]
            seeds, zeros = [()] * num_rows, [0.0] * num_rows
            num_logprobs, given = [generator.choice([0, 5, 20])] * num_rows, [(1,)] * num_rows
            launch(scored, SamplingBatch(seeds=seeds, temperatures=zeros, num_logprobs=num_logprobs, given=given))
    assert len(later) > 10 and not new_kinds(later, start)
