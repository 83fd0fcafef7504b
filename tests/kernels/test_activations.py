"""Activations in plain and gated linear layers, against float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from paged_backend.kernels.interface import Kernels
from paged_backend.kernels.reference.activation import ACTIVATIONS
from tests.kernels.implementations import implementations
from tests.kernels.rounding import assert_within, unit


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


EXACT: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda x: 0.5 * x * torch.erfc(-x / math.sqrt(2)),
    "gelu_fast": gelu_tanh,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "quick_gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
    "relu": lambda x: x.clamp(min=0),
    "relu2": lambda x: x.clamp(min=0) ** 2,
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "silu": silu,
    "swish": silu,
    "tanh": torch.tanh,
}
names = pytest.mark.parametrize("name", sorted(EXACT))


def test_every_activation_is_tested() -> None:
    assert set(EXACT) == set(ACTIVATIONS)


@implementations
@names
def test_activation(kernels: Kernels, dtype: torch.dtype, name: str) -> None:
    """A product with the identity is exact, so that the activation is all that errs."""
    x = torch.linspace(-12, 12, 960).to(dtype).view(40, 24)
    out = kernels.linear(x, kernels.pack_linear(torch.eye(24)), activation=name)
    assert out.dtype == dtype and out.shape == x.shape
    # All of them are x or 1 times a factor in 0..1 that errs by some roundings of its argument.
    bound = 32 * unit(torch.float32) * (1 + x.double().abs())
    assert_within(out, EXACT[name](x.double()), bound * (1 + x.double().abs() * (name == "relu2")))


@implementations
@pytest.mark.parametrize("value", [-1e30, -200.0, -89.0, 0.0, 89.0, 200.0, 1e30])
@names
def test_far_out(kernels: Kernels, dtype: torch.dtype, name: str, value: float) -> None:
    """Where exp overflows or vanishes, the limit comes out, not NaN."""
    limit = torch.finfo(dtype).max
    x = torch.full((2, 16), min(max(value, -limit), limit)).to(dtype)
    out = kernels.linear(x, kernels.pack_linear(torch.eye(16)), activation=name).float()
    exact = EXACT[name](x.double())
    if value == -1e30:
        exact.fill_(-1.0 if name == "tanh" else 0.0)  # float64's formulas may multiply infinity with 0
    expected = torch.where(exact > limit, torch.inf, exact).float()
    torch.testing.assert_close(out, expected, rtol=1e-2, atol=1e-30)


@implementations
@names
def test_gated(kernels: Kernels, dtype: torch.dtype, name: str) -> None:
    x = torch.randn(7, 48).to(dtype)
    gate, up = torch.randn(2, 40, 48).unbind(0)
    weight = torch.cat((gate, up))
    out = kernels.linear(x, kernels.pack_linear(weight, gated=True), activation=name)
    assert out.dtype == dtype and out.shape == (7, 40)
    wide_gate, wide_up = x.double() @ gate.double().T, x.double() @ up.double().T
    # A sum of 48 products errs by 48 roundings of its magnitude; no activation is steeper than 2 (relu2: than 2 x).
    sums = 48 * unit(torch.float32)
    gate_error = x.double().abs() @ gate.double().abs().T * sums
    up_error = x.double().abs() @ up.double().abs().T * sums
    steepness = 2 + 2 * wide_gate.abs() * (name == "relu2")
    error = gate_error * steepness + 34 * unit(torch.float32) * (1 + wide_gate.abs()) ** 2
    exact = EXACT[name](wide_gate)
    assert_within(out, exact * wide_up, error * (wide_up.abs() + up_error) + exact.abs() * up_error)


@implementations
def test_gated_without_an_activation(kernels: Kernels, dtype: torch.dtype) -> None:
    x = torch.ones(1, 2).to(dtype)
    weight = torch.tensor([[1.0, 2.0], [1.0, 1.0], [4.0, 0.5], [-1.0, 0.0]])
    out = kernels.linear(x, kernels.pack_linear(weight, torch.tensor([1.0, 0.0, 0.0, 1.0]), gated=True))
    assert out.tolist() == [[4 * 4.5, 0.0]]
