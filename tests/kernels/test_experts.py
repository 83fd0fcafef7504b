"""The reference's mixture of experts against float64, and who refuses what."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paged_backend.errors import KernelError
from paged_backend.kernels.reference.kernels import ReferenceKernels
from paged_backend.kernels.registry import select_kernels
from tests.kernels.experts_case import exact_experts, make_experts
from tests.kernels.rounding import assert_within

KERNELS = ReferenceKernels()


@pytest.mark.parametrize("name", ["float32", "bfloat16", "int8/row", "int4/32"])
@pytest.mark.parametrize(("num_experts_per_tok", "norm_topk_prob"), [(1, False), (2, True), (3, False), (5, True)])
def test_against_float64(name: str, num_experts_per_tok: int, norm_topk_prob: bool) -> None:
    inner, outer = make_experts(name, 5, 48, 40)
    x, logits, residual = torch.randn(7, 48), torch.randn(7, 5), torch.randn(7, 48)
    logits[2] = 1.0  # equal ones: the first are taken
    exact = exact_experts(x, logits, inner, outer, num_experts_per_tok, norm_topk_prob, residual)
    out = KERNELS.experts(
        x,
        logits,
        KERNELS.pack_experts(inner, outer),
        num_experts_per_tok=num_experts_per_tok,
        norm_topk_prob=norm_topk_prob,
        activation="silu",
        residual=residual,
    )
    assert_within(out, exact.out, exact.error)


@pytest.mark.parametrize(
    ("match", "change"),
    [
        ("^inner .* at least one", {"inner": []}),
        ("^inner .* a list", {"inner": torch.zeros(2, 8, 4)}),
        ("^outer .* as many", {"outer": [torch.zeros(4, 4)]}),
        (r"^inner .* \[8, 4\], got \[8, 5\]", {"inner": [torch.zeros(8, 4), torch.zeros(8, 5)]}),
        (r"^outer .* \[4, 4\], got \[5, 4\]", {"outer": [torch.zeros(5, 4), torch.zeros(4, 4)]}),
        ("^outer .* one dtype", {"outer": [torch.zeros(4, 4), torch.zeros(4, 4).half()]}),
        ("gated layer", {"inner": [torch.zeros(7, 4), torch.zeros(7, 4)]}),
        ("^x must be", {"x": torch.zeros(3, 5)}),
        ("^router_logits must be", {"router_logits": torch.zeros(3, 3)}),
        ("^router_logits must be", {"router_logits": torch.zeros(2, 2)}),
        ("^num_experts_per_tok must be in 1..2, got 3", {"num_experts_per_tok": 3}),
        ("^num_experts_per_tok must be in 1..2, got 0", {"num_experts_per_tok": 0}),
        ("^activation 'sigh' is unknown", {"activation": "sigh"}),
        ("^residual must be", {"residual": torch.zeros(3, 5)}),
        ("^weights must be", {"weights": KERNELS.pack_linear(torch.zeros(4, 4))}),
    ],
)
def test_wrong_arguments_are_refused(match: str, change: dict[str, Any]) -> None:
    right: dict[str, Any] = {
        "inner": [torch.zeros(8, 4), torch.zeros(8, 4)],
        "outer": [torch.zeros(4, 4), torch.zeros(4, 4)],
        "x": torch.zeros(3, 4),
        "router_logits": torch.zeros(3, 2),
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "activation": "silu",
    }

    def compute(inner: Any, outer: Any, x: Any, router_logits: Any, weights: Any = None, **options: Any) -> Any:
        packed = KERNELS.pack_experts(inner, outer)
        return KERNELS.experts(x, router_logits, packed if weights is None else weights, **options)

    assert compute(**right).shape == (3, 4)
    with pytest.raises(KernelError, match=match):
        compute(**{**right, **change})


def test_cpp_refuses_and_says_who_has_it() -> None:
    kernels = select_kernels("cpu", num_threads=1)
    with pytest.raises(KernelError, match="kernel_backend reference or triton has"):
        kernels.pack_experts(*make_experts("float32", 2, 8, 8))
