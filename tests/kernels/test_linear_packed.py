"""Packed linear layers in C++ against float64, in every format, route and instruction set."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from paged_backend.kernels.quantized_weight import QuantizedWeight
from paged_backend.kernels.reference.activation import ACTIVATIONS
from tests.kernels.linear_case import (
    FLOAT_FORMATS,
    INSTRUCTION_SETS,
    QUANTIZED_FORMATS,
    ROUTES,
    UNIT,
    Sums,
    exact_weight,
    make_weight,
    pack,
    quantize,
)

# Widths that fill panels, vectors and segments, and widths that fill none of them.
SHAPES = ((64, 256), (33, 100), (1, 1), (70, 517), (31, 8), (160, 1027))
ROWS = (1, 2, 3, 4, 5, 6, 7, 9, 11, 12, 13, 17, 25, 40, 300)
CASES = [(name, "float32") for name in FLOAT_FORMATS] + [
    (name, route) for name in QUANTIZED_FORMATS for route in ROUTES
]


def assert_bounded(actual: Tensor, exact: Tensor, bound: Tensor) -> None:
    excess = (actual.double() - exact).abs() - bound
    assert excess.max() <= 0, f"off by {excess.max():.3e} more than the bound"


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize(("name", "route"), CASES)
def test_sums(instruction_set: str, name: str, route: Any) -> None:
    for num_outputs, num_inputs in SHAPES:
        weight = make_weight(name, num_outputs, num_inputs)
        layer = pack(instruction_set, weight, route=route if "int" in name else "auto")
        if layer is None:
            pytest.skip(f"{instruction_set} has no {route}")
        packed = layer.weight
        assert (packed.num_inputs, packed.num_outputs, packed.route) == (num_inputs, num_outputs, route)
        assert packed.num_bytes >= num_outputs * num_inputs // 2
        x = torch.randn(300, num_inputs) * torch.logspace(-3, 3, 300)[:, None]
        sums = Sums.of(x, weight, route)
        for num_rows in ROWS:
            assert_bounded(layer(x[:num_rows]), sums.exact[:num_rows], sums.bound[:num_rows])


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize(
    ("name", "route"), [("float32", "auto"), ("bfloat16", "auto"), ("int8/row", "auto"), ("int4/32", "float32")]
)
@pytest.mark.parametrize("with_residual", [False, True])
def test_bias_activation_and_residual(instruction_set: str, name: str, route: Any, with_residual: bool) -> None:
    weight, bias = make_weight(name, 90, 64), torch.randn(90)
    layer = pack(instruction_set, weight, bias, route=route)
    assert layer is not None
    x, residual = torch.randn(14, 64), torch.randn(14, 90)
    sums = Sums.of(x, weight, layer.weight.route)
    before = sums.exact + bias.double()
    after = functional.silu(before) + (residual.double() if with_residual else 0.0)
    # silu's slope is below 1.1; five roundings of its own, and one each for bias and residual.
    bound = 1.1 * (sums.bound + UNIT * before.abs()) + 16 * UNIT * (before.abs() + after.abs() + residual.abs())
    given = residual.clone() if with_residual else None
    assert_bounded(layer(x, activation="silu", residual=given), after, bound)
    assert given is None or torch.equal(given, residual)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "int8/row", "int4/32"])
@pytest.mark.parametrize("num_outputs", [16, 45, 64])
def test_gated(instruction_set: str, name: str, num_outputs: int) -> None:
    weight, bias = make_weight(name, 2 * num_outputs, 96), torch.randn(2 * num_outputs)
    layer = pack(instruction_set, weight, bias, gated=True)
    assert layer is not None
    assert layer.weight.num_outputs == num_outputs
    x = torch.randn(20, 96)
    sums = Sums.of(x, weight, layer.weight.route)
    gate, up = (sums.exact + bias.double()).split(num_outputs, dim=1)
    gate_bound, up_bound = (sums.bound + UNIT * (sums.exact + bias).abs()).split(num_outputs, dim=1)
    for activation in (None, "silu"):
        exact = functional.silu(gate) if activation else gate
        off = 1.1 * gate_bound + 16 * UNIT * exact.abs()
        bound = off * (up.abs() + up_bound) + exact.abs() * up_bound + UNIT * (exact * up).abs()
        assert_bounded(layer(x, activation=activation), exact * up, bound)


def exact_activation(name: str, x: Tensor) -> Tensor:
    if name == "gelu":  # torch's own cancels where x is negative
        return 0.5 * x * torch.special.erfc(-x * 0.5**0.5)
    if name.startswith("gelu"):
        return x * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))
    return ACTIVATIONS[name](x)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_are_accurate(instruction_set: str, name: str) -> None:
    """Through a layer that passes numbers on unchanged. Relative errors are those of about ten roundings; where the
    exponent of an exponential is rounded, they grow with that exponent."""
    layer = pack(instruction_set, torch.eye(64))
    assert layer is not None
    x = torch.cat((torch.linspace(-12, 12, 6000), torch.logspace(-8, 4, 200), -torch.logspace(-8, 4, 200)))[:6400].view(
        -1, 64
    )
    actual, exact = layer(x, activation=name), exact_activation(name, x.double())
    exponent = {
        "silu": 1.0,
        "swish": 1.0,
        "sigmoid": 1.0,
        "quick_gelu": 1.702,
        "tanh": 0.0,
        "gelu": 0.0,
        "relu": 0.0,
    }.get(name, 0.0)
    growth = x.double().abs() * exponent
    if name in ("gelu_fast", "gelu_new", "gelu_pytorch_tanh"):
        growth = 4 * (2 * 0.8 * (x.double() + 0.044715 * x.double() ** 3)).abs()
    # What is smaller than exp(-80) may be lost.
    assert_bounded(actual, exact, (10 + growth) * UNIT * exact.abs() + 1e-33)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_infinities_and_not_a_number_stay_in_their_row_and_are_seen(instruction_set: str) -> None:
    for name, route in CASES:
        layer = pack(instruction_set, make_weight(name, 40, 300), route=route if "int" in name else "auto")
        if layer is None:
            continue
        x = torch.randn(14, 300)
        clean = layer(x)
        for value in (float("nan"), float("inf"), -float("inf")):
            dirty = x.clone()
            dirty[5, 170] = value
            out = layer(dirty)
            assert not out[5].isfinite().any(), (name, route)
            assert torch.equal(out[:5], clean[:5])
            assert torch.equal(out[6:], clean[6:])


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_zeros_and_tiny_numbers(instruction_set: str) -> None:
    for name, route in CASES:
        layer = pack(
            instruction_set, make_weight(name, 40, 300), torch.ones(40), route=route if "int" in name else "auto"
        )
        if layer is None:
            continue
        for value in (0.0, -0.0, 1e-42, 1e-35, 1e-30):
            out = layer(torch.full((3, 300), value))
            assert (out - 1).abs().max() < 1e-6, (name, route, value)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("bits", [8, 4])
def test_extreme_numbers_do_not_overflow(instruction_set: str, bits: int) -> None:
    """The largest whole-number sums there can be."""
    low, high = (-127, 127) if bits == 8 else (-8, 7)
    for value in (low, high):
        weight = QuantizedWeight(torch.full((32, 1024), value, dtype=torch.int8), torch.ones(32, 1), bits, 1024)
        for route in ROUTES:
            layer = pack(instruction_set, weight, route=route)
            if layer is None:
                continue
            for sign in (1.0, -1.0):
                exact = 1024 * value * sign
                assert ((layer(torch.full((5, 1024), sign)) - exact).abs() <= 1e-5 * abs(exact)).all()


def relative_error(actual: Tensor, exact: Tensor) -> float:
    return ((actual.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt()).item()


def test_routes_errors() -> None:
    """What each route's rounding costs, against float64 of the same quantised weights and beside the loss of quantising
    the weights at all: root mean squares relative to the results. Normally distributed weights and activations, K =
    1024, give float32 6e-7, int16 3e-5 and int8 6.5e-3; int8 weights lose 8e-3 themselves (one scale a row), int4
    weights 0.12 (128 a group). Where a hundredth of the inputs are 20 times the others: int16 1e-4, int8 2e-2. So int16
    is negligible for both; int8 for int4 weights, while beside int8 weights it is a loss like their own."""
    weight, x = torch.randn(256, 1024), torch.randn(64, 1024)
    for bits, group_size, own_at_least in ((8, 1024, 5e-3), (4, 128, 5e-2)):
        quantized = quantize(weight, bits, group_size)
        exact = x.double() @ exact_weight(quantized).T
        own = relative_error(exact, x.double() @ weight.double().T)
        assert own > own_at_least
        for route, at_most in (("float32", 2e-6), ("int16", 5e-5), ("int8", 1e-2)):
            for instruction_set in INSTRUCTION_SETS:
                layer = pack(instruction_set, quantized, route=route)
                if layer is not None:
                    error = relative_error(layer(x), exact)
                    assert error < min(at_most, own), (bits, route, error, own)
