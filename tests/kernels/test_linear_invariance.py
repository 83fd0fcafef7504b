"""A row's bits depend on that row alone: not on the rows beside it, the threads, or where the rows lie."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.kernels.linear_case import FLOAT_FORMATS, INSTRUCTION_SETS, ROUTES, make_weight, pack

CASES = [(name, "float32") for name in FLOAT_FORMATS] + [
    (name, route) for name in ("int8/row", "int8/128", "int4/32", "int4/24") for route in ROUTES
]


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize(("name", "route"), CASES)
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(150, 700), (520, 96)])
def test_any_batch(instruction_set: str, name: str, route: Any, num_outputs: int, num_inputs: int) -> None:
    layer = pack(instruction_set, make_weight(name, num_outputs, num_inputs), route=route if "int" in name else "auto")
    if layer is None:
        pytest.skip(f"{instruction_set} has no {route}")
    x = torch.randn(300, num_inputs)
    whole = layer(x)
    for num_rows in (*range(1, 41), 63, 120, 299):
        assert torch.equal(layer(x[:num_rows]), whole[:num_rows]), num_rows
    for begin, end in ((7, 8), (3, 19), (150, 300), (299, 300)):
        assert torch.equal(layer(x[begin:end]), whole[begin:end]), (begin, end)
    order = torch.randperm(300)
    assert torch.equal(layer(x[order]), whole[order])


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize(("name", "route"), CASES)
def test_any_threads_and_panels(instruction_set: str, name: str, route: Any) -> None:
    weight = make_weight(name, 600, 520)
    layers = [
        pack(instruction_set, weight, route=route if "int" in name else "auto", num_threads=num_threads)
        for num_threads in (1, 2, 3, 5)
    ]
    if layers[0] is None:
        pytest.skip(f"{instruction_set} has no {route}")
    x = torch.randn(1200, 520)  # more than a call takes at once
    for num_rows in (1, 3, 14, 77, 1200):
        results = [layer(x[:num_rows]) for layer in layers if layer is not None]
        for result in results[1:]:
            assert torch.equal(result, results[0]), num_rows


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", ["float32", "bfloat16", "int8/row", "int4/32"])
def test_rows_apart(instruction_set: str, name: str) -> None:
    weight = make_weight(name, 83, 129)
    layer = pack(instruction_set, weight)
    assert layer is not None
    x, residual = torch.randn(29, 129), torch.randn(29, 83)
    expected = layer(x, activation="gelu", residual=residual)
    wide_x, wide_residual = torch.full((29, 141), 9.0), torch.full((29, 90), 9.0)
    wide_x[:, 3:132], wide_residual[:, 5:88] = x, residual
    assert torch.equal(layer(wide_x[:, 3:132], activation="gelu", residual=wide_residual[:, 5:88]), expected)
    if name in ("float32", "bfloat16"):
        wide_weight = torch.full((83, 150), float("nan")).to(weight.dtype)
        wide_weight[:, 11:140] = weight
        apart = pack(instruction_set, wide_weight[:, 11:140])
        assert apart is not None
        assert torch.equal(apart(x, activation="gelu", residual=residual), expected)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "int8/row", "int4/32"])
def test_a_gate_beside_its_up_sums_as_alone(instruction_set: str, name: str) -> None:
    weight = make_weight(name, 100, 320)
    gated, plain = pack(instruction_set, weight, gated=True), pack(instruction_set, weight)
    assert gated is not None and plain is not None
    x = torch.randn(15, 320)
    gate, up = plain(x).split(50, dim=1)
    assert torch.equal(gated(x), gate * up)


def test_no_rows() -> None:
    layer = pack("auto", torch.randn(8, 8))
    assert layer is not None
    assert layer(torch.randn(0, 8)).shape == (0, 8)
