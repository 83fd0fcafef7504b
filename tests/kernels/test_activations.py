"""Activations, plain and gated, against float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from paged_backend.kernels.reference.activation import ACTIVATIONS
from paged_backend.kernels.registry import select_kernels
from tests.kernels.rounding import FLOAT_DTYPES, assert_within, unit

KERNELS = select_kernels("reference")


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
dtypes = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)


def test_every_activation_is_tested() -> None:
    assert set(EXACT) == set(ACTIVATIONS)


@names
@dtypes
def test_activation(name: str, dtype: torch.dtype) -> None:
    x = torch.linspace(-12, 12, 1000).to(dtype).view(10, 100).T
    out = KERNELS.activation(x, name)
    assert out.dtype == dtype and out.shape == x.shape
    # All of them are x or 1 times a factor in 0..1 that errs by some roundings of its argument.
    bound = 32 * unit(torch.float32) * (1 + x.double().abs())
    assert_within(out, EXACT[name](x.double()), bound * (1 + x.double().abs() * (name == "relu2")))


@names
@dtypes
def test_gated_activation(name: str, dtype: torch.dtype) -> None:
    both = torch.randn(7, 48).to(dtype)
    gate, up = both.chunk(2, dim=-1)
    out = KERNELS.gated_activation(gate, up, name)
    assert out.dtype == dtype and out.shape == gate.shape
    bound = 34 * unit(torch.float32) * (1 + gate.double().abs()) ** 2 * up.double().abs()
    assert_within(out, EXACT[name](gate.double()) * up.double(), bound)
