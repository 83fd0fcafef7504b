"""Arguments of a wrong shape, dtype or layout are refused by name, before a kernel sees them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paged_backend.errors import KernelError
from paged_backend.kernels.interface import Kernels
from paged_backend.kernels.registry import select_kernels
from tests.kernels.paged_case import make_case

BACKENDS = {name: select_kernels(name) for name in ("reference", "cpu")}
backends = pytest.mark.parametrize("kernels", BACKENDS.values(), ids=BACKENDS.keys())
F32, F64, I64 = torch.float32, torch.float64, torch.int64


@backends
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("query", {"query": torch.zeros(4, 4, 32, dtype=F64)}),
        ("query", {"query": torch.zeros(4, 4, 31)}),
        ("query", {"query": torch.zeros(4, 3, 32)}),
        ("query", {"query": torch.zeros(4, 0, 32)}),
        ("query", {"query": torch.zeros(4, 32)}),
        ("query", {"query": torch.zeros(4, 32, 4).transpose(1, 2)}),
        ("query_start", {"query": torch.zeros(5, 4, 32)}),
        ("key_cache", {"key_cache": torch.zeros(8, 2, 16, 32, dtype=I64)}),
        ("key_cache", {"key_cache": torch.zeros(8, 2, 32)}),
        ("key_cache", {"key_cache": torch.zeros(0, 2, 16, 32), "value_cache": torch.zeros(0, 2, 16, 32)}),
        ("value_cache", {"value_cache": torch.zeros(3, 2, 16, 32)}),
        ("value_cache", {"value_cache": torch.zeros(5, 2, 16, 32, dtype=torch.float16)}),
        ("value_cache", {"value_cache": torch.zeros(5, 16, 2, 32).transpose(1, 2)}),
        ("block_tables", {"block_tables": torch.zeros(2, 3, dtype=I64)}),
        ("block_tables", {"block_tables": torch.zeros(3, 3, dtype=torch.int32)}),
        ("block_tables", {"block_tables": torch.zeros(3, 2, dtype=torch.int32).T}),
        ("block_tables", {"block_tables": torch.zeros(2, 1, dtype=torch.int32)}),
        ("query_start", {"query_start": torch.zeros(2, dtype=torch.int32)}),
        ("query_start", {"query_start": torch.zeros(3)}),
        ("context_lens", {"context_lens": torch.zeros(2, dtype=I64)}),
        ("context_lens", {"context_lens": torch.zeros(2, 1, dtype=torch.int32)}),
        ("scale", {"scale": 0.0}),
        ("scale", {"scale": float("nan")}),
        ("sliding_window", {"sliding_window": -1}),
        ("soft_cap", {"soft_cap": -1.0}),
        ("soft_cap", {"soft_cap": float("inf")}),
    ],
)
def test_paged_attention(kernels: Kernels, name: str, change: dict[str, Any]) -> None:
    case = make_case([1, 3], [9, 30])
    assert case.key_cache.shape == (5, 2, 16, 32)
    for field, value in change.items():
        setattr(case, field, value)
    with pytest.raises(KernelError, match=rf"^{name}\b"):
        case.run(kernels.paged_attention)


def test_paged_attention_cpp_refuses_large_heads() -> None:
    with pytest.raises(KernelError, match="256"):
        make_case([1], [3], head_size=257).run(BACKENDS["cpu"].paged_attention)


@backends
@pytest.mark.parametrize(
    ("operation", "arguments", "name"),
    [
        ("write_kv", (torch.zeros(1, 2, 7), torch.zeros(1, 2, 8), torch.tensor([0])), "key"),
        ("write_kv", (torch.zeros(1, 2, 8), torch.zeros(2, 2, 8), torch.tensor([0])), "value"),
        ("write_kv", (torch.zeros(1, 2, 8), torch.zeros(1, 2, 8), torch.tensor([0.0])), "slot_mapping"),
        ("write_kv", (torch.zeros(1, 2, 8, dtype=I64), torch.zeros(1, 2, 8), torch.tensor([0])), "key"),
        ("copy_blocks", (torch.zeros(2, 3, 2, 4, 8), torch.zeros(0, 2, dtype=I64)), "cache"),
        ("copy_blocks", (torch.zeros(1, 2, 3, 2, 4, 8), torch.zeros(2, dtype=I64)), "pairs"),
        ("rms_norm", (torch.zeros(2, 8), torch.zeros(7), 1e-5), "weight"),
        ("rms_norm", (torch.zeros(2, 8), torch.zeros(8), -1.0), "eps"),
        ("rms_norm", (torch.zeros(2, 8), torch.zeros(8), 1e-5, torch.zeros(1, 8)), "residual"),
        ("layer_norm", (torch.zeros(2, 8), torch.zeros(8), torch.zeros(9), 1e-5), "bias"),
        ("layer_norm", (torch.zeros(2, 8, dtype=F64), None, None, 1e-5), "x"),
        ("rotary", (torch.zeros(2, 8), torch.zeros(2, 1, 8), torch.zeros(2, 8), torch.zeros(2, 8)), "query"),
        ("rotary", (torch.zeros(2, 1, 8), torch.zeros(3, 1, 8), torch.zeros(2, 8), torch.zeros(2, 8)), "key"),
        ("rotary", (torch.zeros(2, 1, 8), torch.zeros(2, 1, 8), torch.zeros(2, 7), torch.zeros(2, 7)), "cos"),
        (
            "rotary",
            (torch.zeros(2, 1, 8), torch.zeros(2, 1, 8), torch.zeros(2, 8).half(), torch.zeros(2, 8)),
            "cos",
        ),
        ("rotary", (torch.zeros(2, 1, 8), torch.zeros(2, 1, 8), torch.zeros(2, 8), torch.zeros(2, 6)), "sin"),
        ("activation", (torch.zeros(2), "sillu"), "activation 'sillu'"),
        ("activation", (torch.zeros(2, dtype=I64), "silu"), "x"),
        ("gated_activation", (torch.zeros(2), torch.zeros(3), "silu"), "up"),
        ("linear", (torch.zeros(2, 8), torch.zeros(3, 7)), "x"),
        ("linear", (torch.zeros(2, 8), torch.zeros(8)), "weight"),
        ("linear", (torch.zeros(2, 8), torch.zeros(3, 8), torch.zeros(2)), "bias"),
    ],
)
def test_other_operations(kernels: Kernels, operation: str, arguments: tuple[Any, ...], name: str) -> None:
    if operation == "write_kv":
        key, value, slots = arguments
        arguments = (key, value, torch.zeros(4, 2, 16, 8), torch.zeros(4, 2, 16, 8), slots)
    with pytest.raises(KernelError, match=rf"^{name}\b|^{name} "):
        getattr(kernels, operation)(*arguments)
