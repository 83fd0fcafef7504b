"""Arguments of a wrong shape, dtype or layout are refused by name, before anything is computed or written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.cache_layout import LayerCache
from paged_backend.kernels.interface import Kernels
from tests.kernels.implementations import IMPLEMENTATIONS
from tests.kernels.step_case import make_cache, make_inputs

backends = pytest.mark.parametrize("kernels", [IMPLEMENTATIONS[name][0] for name in ("reference", "auto")])
I32, I64, F16, F64 = torch.int32, torch.int64, torch.float16, torch.float64
T, WIDTH = 4, 16


def rows(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(*(shape or (T, WIDTH)), dtype=dtype)


def ints(*shape: int, dtype: torch.dtype = I64) -> Tensor:
    return torch.zeros(*shape, dtype=dtype)


def refused(name: str) -> Any:
    return pytest.raises(KernelError, match=rf"^(the )?{name}\b")


WRONG_INPUTS = [
    ("token_ids", rows(T)),
    ("token_ids", ints(T, 1)),
    ("positions", ints(T + 1)),
    ("positions", ints(T, dtype=I32)),
    ("slot_mapping", ints(2 * T)[::2]),
    ("slot_mapping", ints(T - 1)),
    ("block_tables", ints(2, 3)),
    ("block_tables", ints(3, 3, dtype=I32)),
    ("block_tables", ints(3, 2, dtype=I32).T),
    ("query_start", ints(2, dtype=I32)),
    ("query_start", ints(3)),
    ("context_lens", ints(2)),
    ("context_lens", ints(2, 1, dtype=I32)),
    ("logits_rows", ints(2, dtype=I32)),
    ("logits_rows", ints(1, 2)),
]


@backends
@pytest.mark.parametrize(("name", "tensor"), WRONG_INPUTS, ids=lambda value: value if isinstance(value, str) else "")
def test_inputs_of_a_step(kernels: Kernels, name: str, tensor: Tensor) -> None:
    inputs = replace(make_inputs([1, 3], [2, 3], num_blocks=8, logits_rows=ints(2)), **{name: tensor})
    cache = make_cache("float32", 8)

    def step(kernels: Kernels, inputs: Any) -> Any:
        qkv = kernels.linear(kernels.embedding(rows(100, WIDTH), "token_ids", inputs), weight)
        query = kernels.qkv_to_cache(qkv, cache, inputs, num_heads=2)
        return kernels.select_rows(kernels.paged_attention(query, cache, inputs, scale=1.0), inputs)

    weight = kernels.pack_linear(rows(6 * 8, WIDTH))
    before = cache.keys.clone()
    with pytest.raises(KernelError, match=rf"\b{name}\b"):
        kernels.compile(step)(inputs)
    if name != "logits_rows":
        assert torch.equal(cache.keys, before)


@backends
@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("weight", (ints(8, 8),), {}),
        ("weight", (rows(8, 8, dtype=F64),), {}),
        ("weight", (rows(8),), {}),
        ("weight", (rows(0, 8),), {}),
        ("weight", (rows(8, 4).T,), {}),
        ("weight", (rows(7, 8),), {"gated": True}),
        ("bias", (rows(8, 4), rows(7)), {}),
        ("bias", (rows(8, 4), rows(8, dtype=F16)), {}),
        ("bias", (rows(8, 4), rows(4)), {"gated": True}),
    ],
)
def test_pack_linear(kernels: Kernels, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    with refused(name):
        kernels.pack_linear(*arguments, **options)


@backends
@pytest.mark.parametrize(
    ("name", "x", "gated", "options"),
    [
        ("x", rows(T, 15), False, {}),
        ("x", rows(T, WIDTH, dtype=F16), False, {}),
        ("x", rows(WIDTH), False, {}),
        ("activation", rows(), False, {"activation": "sillu"}),
        ("residual", rows(), False, {"residual": rows(T, 7)}),
        ("residual", rows(), False, {"residual": rows(T - 1, 8)}),
        ("residual", rows(), True, {"residual": rows(T, 4)}),
    ],
)
def test_linear(kernels: Kernels, name: str, x: Tensor, gated: bool, options: dict[str, Any]) -> None:
    weight = kernels.pack_linear(rows(8, WIDTH), gated=gated)
    with refused(name):
        kernels.linear(x, weight, **options)


@backends
@pytest.mark.parametrize(
    ("operation", "arguments", "name"),
    [
        ("embedding", (ints(9, 8), "token_ids"), "table"),
        ("embedding", (rows(8), "token_ids"), "table"),
        ("embedding", (rows(8, 100).T, "token_ids"), "table"),
        ("embedding", (rows(100, 8), "tokens"), "indices"),
        ("embedding", (rows(100, 8), "token_ids", rows(T, 7)), "add"),
        ("rms_norm", (rows(), rows(15), 1e-5), "weight"),
        ("rms_norm", (rows(), rows(16, dtype=F16), 1e-5), "weight"),
        ("rms_norm", (rows(), rows(16), -1.0), "eps"),
        ("rms_norm", (rows(), rows(16), float("nan")), "eps"),
        ("rms_norm", (rows(2, 2, 16), rows(16), 1e-5), "x"),
        ("layer_norm", (rows(), rows(16), rows(17), 1e-5), "bias"),
        ("layer_norm", (rows(T, 16, dtype=F64), None, None, 1e-5), "x"),
        ("select_rows", (rows(T + 1, 8),), "x"),
        ("soft_cap", (rows(), 0.0), "cap"),
        ("soft_cap", (rows(), float("inf")), "cap"),
        ("copy_blocks", (rows(1, 2, 3, 64), ints(0, 2)), "storage"),
        ("copy_blocks", (torch.zeros(1, 3, 3, 64, dtype=torch.uint8), ints(0, 2)), "storage"),
        ("copy_blocks", (torch.zeros(1, 2, 3, 128, dtype=torch.uint8)[..., :64], ints(0, 2)), "storage"),
        ("copy_blocks", (torch.zeros(1, 2, 3, 64, dtype=torch.uint8), ints(2)), "pairs"),
        ("copy_blocks", (torch.zeros(1, 2, 3, 64, dtype=torch.uint8), ints(2, 2, dtype=I32)), "pairs"),
    ],
)
def test_other_operations(kernels: Kernels, operation: str, arguments: tuple[Any, ...], name: str) -> None:
    inputs = make_inputs([1, 3])
    if operation == "embedding":
        arguments = (*arguments[:2], inputs, *arguments[2:])
    elif operation == "select_rows":
        arguments = (*arguments, inputs)
    with refused(name):
        getattr(kernels, operation)(*arguments)


@backends
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("qkv", {"qkv": rows(T, 47)}),
        ("qkv", {"qkv": rows(T + 1, 48)}),
        ("qkv", {"num_heads": 4}),
        ("query heads", {"num_heads": 3, "qkv": rows(T, 7 * 8)}),
        ("query heads", {"num_heads": 0, "qkv": rows(T, 4 * 8)}),
        ("query_norm", {"query_norm": rows(8)}),
        ("query_norm", {"query_norm": rows(7), "key_norm": rows(8)}),
        ("key_norm", {"query_norm": rows(8), "key_norm": rows(8, dtype=F16)}),
        ("norm_eps", {"norm_eps": -1.0}),
        ("cos", {"rotary": (rows(9, 7), rows(9, 7))}),
        ("cos", {"rotary": (rows(9, 10), rows(9, 10))}),
        ("cos", {"rotary": (rows(9, 8, dtype=F16), rows(9, 8))}),
        ("cos", {"rotary": (rows(8, 9).T, rows(9, 8))}),
        ("sin", {"rotary": (rows(9, 8), rows(9, 6))}),
    ],
)
def test_qkv_to_cache(kernels: Kernels, name: str, change: dict[str, Any]) -> None:
    cache = make_cache("float32", 3)
    before = cache.keys.clone()
    arguments = {"qkv": rows(T, 48), "num_heads": 2, **change}
    with refused(name):
        kernels.qkv_to_cache(arguments.pop("qkv"), cache, make_inputs([1, 3], num_blocks=3), **arguments)
    assert torch.equal(cache.keys, before)


@backends
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("query", {"query": rows(T, 17)}),
        ("query", {"query": rows(T - 1, 16)}),
        ("query", {"query": rows(T, 16, dtype=F16)}),
        ("query heads", {"query": rows(T, 24)}),
        ("query heads", {"query": rows(T, 0)}),
        ("scale", {"scale": 0.0}),
        ("scale", {"scale": float("nan")}),
        ("sliding_window", {"sliding_window": -1}),
        ("soft_cap", {"soft_cap": -1.0}),
        ("soft_cap", {"soft_cap": float("inf")}),
    ],
)
def test_paged_attention(kernels: Kernels, name: str, change: dict[str, Any]) -> None:
    arguments = {"query": rows(T, 16), "scale": 1.0, **change}
    query = arguments.pop("query")
    with refused(name):
        kernels.paged_attention(query, make_cache("float32", 3), make_inputs([1, 3], num_blocks=3), **arguments)


def test_a_cache_checks_itself_when_made() -> None:
    cache = make_cache("bfloat16", 3)
    with pytest.raises(KernelError, match=r"^keys\b"):
        LayerCache(keys=cache.keys, values=cache.values, dtype="float32", num_kv_heads=2, block_size=4, head_size=8)
