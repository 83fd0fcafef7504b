"""Which experts a token goes to, and the pairs of token and expert sorted by expert, all on the device.

The pair of a token and its expert of rank r (0 has the largest logit) has the number r * T + token.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from paged_backend.kernels.triton.aot import AotCase

BLOCK_PAIRS = 1024
NUM_WARPS = 4


@dataclass(frozen=True, slots=True)
class Routing:
    """Pairs by expert, in blocks that each belong to one expert.

    Attributes:
        weights: float32 [pairs], what the expert's result is multiplied with.
        order: int32 [blocks * block_size], the numbers of pairs; that of no pair where a block is not full.
        block_experts: int32 [blocks], whose each block is; -1 for those that nobody needed.
    """

    weights: Tensor
    order: Tensor
    block_experts: Tensor


def route(logits: Tensor, num_experts_per_tok: int, norm_topk_prob: bool, block_size: int) -> Routing:
    """See `Kernels.experts`.

    Args:
        logits: float [T, experts], stride 1 in experts, at least one row.
        block_size: pairs of a block.
    """
    (num_tokens, num_experts), device = logits.shape, logits.device
    num_pairs = num_tokens * num_experts_per_tok
    num_blocks = num_pairs // block_size + min(num_experts, num_pairs)
    experts = torch.empty(num_pairs, dtype=torch.int32, device=device)
    weights = torch.empty(num_pairs, device=device)
    counts = torch.empty(num_experts, dtype=torch.int32, device=device)
    order = torch.empty(num_blocks * block_size, dtype=torch.int32, device=device)
    block_experts = torch.empty(num_blocks, dtype=torch.int32, device=device)
    width = triton.next_power_of_2(num_experts)
    choose_kernel[(num_tokens,)](
        logits,
        experts,
        weights,
        num_tokens,
        num_experts,
        logits.stride(0),
        TOP_K=num_experts_per_tok,
        RANKS=triton.next_power_of_2(num_experts_per_tok),
        NORMALIZED=norm_topk_prob,
        WIDTH=width,
        num_warps=1,
        enable_fp_fusion=False,
    )
    count_kernel[(num_experts,)](
        experts, counts, num_pairs, BLOCK=BLOCK_PAIRS, num_warps=NUM_WARPS, enable_fp_fusion=False
    )
    place_kernel[(num_experts,)](
        experts,
        counts,
        order,
        block_experts,
        num_pairs,
        num_experts,
        num_blocks,
        BLOCK=BLOCK_PAIRS,
        WIDTH=width,
        BLOCK_SIZE=block_size,
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )
    return Routing(weights, order, block_experts)


@triton.jit(do_not_specialize=["num_tokens"])
def choose_kernel(
    logits,
    experts,
    weights,
    num_tokens,
    num_experts,
    logits_stride,
    TOP_K: tl.constexpr,
    RANKS: tl.constexpr,
    NORMALIZED: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One token: its experts in the order of their logits, of equal ones the first, and what softmax gives them."""
    token = tl.program_id(0)
    columns = tl.arange(0, WIDTH)
    row = tl.load(
        logits + token.to(tl.int64) * logits_stride + columns, mask=columns < num_experts, other=float("-inf")
    ).to(tl.float32)
    largest = tl.max(row, axis=0)
    whole = tl.sum(tl.exp(row - largest), axis=0)
    ranks = tl.arange(0, RANKS)
    chosen = tl.zeros((RANKS,), dtype=tl.int32)
    chances = tl.zeros((RANKS,), dtype=tl.float32)
    for rank in tl.static_range(TOP_K):
        # Logits that are no numbers must not lead past the last expert.
        expert = tl.minimum(tl.argmax(row, axis=0), num_experts - 1)
        chosen = tl.where(ranks == rank, expert.to(tl.int32), chosen)
        chances = tl.where(ranks == rank, tl.exp(tl.max(row, axis=0) - largest), chances)
        row = tl.where(columns == expert, float("-inf"), row)
    chances = chances / (tl.sum(chances, axis=0) if NORMALIZED else whole)
    tl.store(experts + ranks * num_tokens + token, chosen, mask=ranks < TOP_K)
    tl.store(weights + ranks * num_tokens + token, chances, mask=ranks < TOP_K)


@triton.jit(do_not_specialize=["num_pairs"])
def count_kernel(experts, counts, num_pairs, BLOCK: tl.constexpr):
    """One expert: how many pairs are its."""
    expert = tl.program_id(0)
    found = tl.zeros((BLOCK,), dtype=tl.int32)
    for first in range(0, num_pairs, BLOCK):
        pairs = first + tl.arange(0, BLOCK)
        found += (tl.load(experts + pairs, mask=pairs < num_pairs, other=-1) == expert).to(tl.int32)
    tl.store(counts + expert, tl.sum(found, axis=0))


@triton.jit(do_not_specialize=["num_pairs", "num_blocks"])
def place_kernel(
    experts,
    counts,
    order,
    block_experts,
    num_pairs,
    num_experts,
    num_blocks,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """One expert: puts its pairs, in their order, behind those of the experts before, from a block's beginning on."""
    expert = tl.program_id(0)
    others = tl.arange(0, WIDTH)
    blocks = (tl.load(counts + others, mask=others < num_experts, other=0) + BLOCK_SIZE - 1) // BLOCK_SIZE
    first_block = tl.sum(tl.where(others < expert, blocks, 0), axis=0)
    end_block = tl.sum(tl.where(others <= expert, blocks, 0), axis=0)
    place = first_block * BLOCK_SIZE
    for first in range(0, num_pairs, BLOCK):
        pairs = first + tl.arange(0, BLOCK)
        is_own = tl.load(experts + pairs, mask=pairs < num_pairs, other=-1) == expert
        places = place + tl.cumsum(is_own.to(tl.int32), axis=0) - 1
        tl.store(order + places, pairs, mask=is_own)
        place += tl.sum(is_own.to(tl.int32), axis=0)
    rest = place + tl.arange(0, BLOCK_SIZE)
    no_pairs = tl.full((BLOCK_SIZE,), 0, tl.int32) + num_pairs
    tl.store(order + rest, no_pairs, mask=rest < end_block * BLOCK_SIZE)
    for first in range(first_block, end_block, WIDTH):
        tl.store(block_experts + first + others, tl.zeros((WIDTH,), tl.int32) + expert, mask=first + others < end_block)
    if expert == num_experts - 1:
        for first in range(end_block, num_blocks, WIDTH):
            tl.store(block_experts + first + others, tl.full((WIDTH,), -1, tl.int32), mask=first + others < num_blocks)


def aot_cases() -> Iterable[AotCase]:
    """Qwen3-30B-A3B's 8 of 128 experts."""
    pairs = {"experts": "*i32", "num_pairs": "i32", "counts": "*i32"}
    blocks = {"order": "*i32", "block_experts": "*i32", "num_experts": "i32:16", "num_blocks": "i32"}
    yield AotCase(
        name="choose",
        kernel=choose_kernel,
        signature={"logits": "*bf16", "experts": "*i32", "weights": "*fp32", "num_tokens": "i32"}
        | {"num_experts": "i32:16", "logits_stride": "i32:16"},
        constexprs={"TOP_K": 8, "RANKS": 8, "NORMALIZED": True, "WIDTH": 128},
        num_warps=1,
        fp_fusion=False,
    )
    yield AotCase(
        name="count",
        kernel=count_kernel,
        signature=pairs,
        constexprs={"BLOCK": BLOCK_PAIRS},
        num_warps=NUM_WARPS,
        fp_fusion=False,
    )
    yield AotCase(
        name="place",
        kernel=place_kernel,
        signature=pairs | blocks,
        constexprs={"BLOCK": BLOCK_PAIRS, "WIDTH": 128, "BLOCK_SIZE": 16},
        num_warps=NUM_WARPS,
        fp_fusion=False,
    )
