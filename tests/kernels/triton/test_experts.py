"""Mixtures of experts on a GPU: who goes where, what comes out, and that neighbours change nothing."""

from __future__ import annotations

import pytest
import torch

from paged_backend.errors import KernelError
from paged_backend.kernels.triton.kernels import TritonKernels
from paged_backend.kernels.triton.routing import route
from paged_backend.quantization.fp8 import quantize_fp8
from tests.kernels.experts_case import exact_experts, make_experts
from tests.kernels.rounding import assert_within


@pytest.mark.parametrize(("num_tokens", "num_experts", "top_k"), [(1, 3, 3), (9, 5, 2), (40, 6, 1)], ids=str)
@pytest.mark.parametrize("norm_topk_prob", [False, True])
def test_routing(num_tokens: int, num_experts: int, top_k: int, norm_topk_prob: bool, device: torch.device) -> None:
    """Every pair is in one block of its expert, in order; blocks past the last one are nobody's."""
    logits = torch.randn(num_tokens, num_experts, device=device).round(decimals=1)  # some are equal
    block_size = 4
    routing = route(logits, top_k, norm_topk_prob, block_size)
    chosen = logits.sort(dim=1, descending=True, stable=True).indices[:, :top_k]
    chances = torch.softmax(logits.double(), 1).gather(1, chosen)
    if norm_topk_prob:
        chances /= chances.sum(1, keepdim=True)
    torch.testing.assert_close(routing.weights.view(top_k, num_tokens), chances.T.float(), rtol=1e-5, atol=1e-7)
    experts_of_pairs = chosen.T.flatten().tolist()
    blocks = routing.order.view(-1, block_size).tolist()
    seen: list[int] = []
    for expert, pairs in zip(routing.block_experts.tolist(), blocks, strict=True):
        if expert >= 0:
            own = [pair for pair in pairs if pair < num_tokens * top_k]
            assert own and pairs == own + [num_tokens * top_k] * (block_size - len(own))
            assert all(experts_of_pairs[pair] == expert for pair in own)
            seen += own
    assert sorted(seen) == list(range(num_tokens * top_k))
    by_expert = sorted(seen, key=lambda pair: (experts_of_pairs[pair], pair))
    assert seen == by_expert
    used = [expert for expert in routing.block_experts.tolist() if expert >= 0]
    assert routing.block_experts.tolist() == used + [-1] * (len(blocks) - len(used))


def test_one_expert_has_all(device: torch.device) -> None:
    logits = torch.zeros(7, 4, device=device)
    logits[:, 2] = 5.0
    routing = route(logits, 1, True, 4)
    assert routing.block_experts.tolist() == [2, 2, -1, -1, -1]
    assert routing.order[:8].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("float32", torch.float32),
        ("float16", torch.float16),
        ("int8/row", torch.float16),
        ("int8/32", torch.float32),
        ("int4/32", torch.float16),
        ("int4/row", torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("norm_topk_prob", [False, True])
def test_against_float64(name: str, dtype: torch.dtype, norm_topk_prob: bool, device: torch.device) -> None:
    inner, outer = make_experts(name, 3, 70, 36)
    x, logits, residual = torch.randn(5, 70).to(dtype), torch.randn(5, 3).to(dtype), torch.randn(5, 70).to(dtype)
    exact = exact_experts(x, logits, inner, outer, 2, norm_topk_prob, residual)
    kernels = TritonKernels(device, dtype)
    packed = kernels.pack_experts(inner, outer)
    assert packed.num_bytes >= 3 * 3 * 70 * 36 // 2
    out = kernels.experts(
        x.to(device),
        logits.to(device),
        packed,
        num_experts_per_tok=2,
        norm_topk_prob=norm_topk_prob,
        activation="silu",
        residual=residual.to(device),
    )
    assert_within(out.cpu(), exact.out, exact.error)


@pytest.mark.parametrize("name", ["float16", "int4/32"])
def test_a_row_has_the_bits_it_has_alone(name: str, device: torch.device) -> None:
    """In blocks with others of its expert, and in larger ones."""
    kernels = TritonKernels(device, torch.float16)
    packed = kernels.pack_experts(*make_experts(name, 2, 64, 32))
    x, logits = torch.randn(40, 64, device=device).half(), torch.randn(40, 2, device=device).half()

    def compute(rows: slice) -> torch.Tensor:
        return kernels.experts(
            x[rows], logits[rows], packed, num_experts_per_tok=1, norm_topk_prob=True, activation="silu"
        )

    alone = compute(slice(17, 18))
    for rows in (slice(17, 24), slice(10, 27), slice(0, 40)):
        assert torch.equal(compute(rows)[17 - rows.start], alone[0]), rows


def test_no_rows_and_no_fp8(device: torch.device) -> None:
    kernels = TritonKernels(device, torch.float32)
    inner, outer = make_experts("float32", 2, 16, 8)
    empty, options = torch.empty(0, 16, device=device), {"norm_topk_prob": True, "activation": "silu"}
    packed = kernels.pack_experts(inner, outer)
    assert kernels.experts(empty, empty[:, :2], packed, num_experts_per_tok=1, **options).shape == (0, 16)
    with pytest.raises(KernelError, match="fp8, which has no kernel for experts"):
        kernels.pack_experts(*([quantize_fp8(weight) for weight in weights] for weights in (inner, outer)))
