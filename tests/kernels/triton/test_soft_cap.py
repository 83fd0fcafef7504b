"""The soft cap against float64."""

from __future__ import annotations

import pytest
import torch

from paged_backend.kernels.interface import Kernels
from tests.kernels.rounding import assert_within, unit


@pytest.mark.parametrize("cap", [0.5, 30.0])
def test_soft_cap(kernels: Kernels, dtype: torch.dtype, device: torch.device, cap: float) -> None:
    x = torch.linspace(-100, 100, 5000).to(device, dtype).view(2, 2500)
    exact = cap * torch.tanh(x.double() / cap)
    assert_within(kernels.soft_cap(x.clone(), cap), exact, 8 * unit(torch.float32) * exact.abs())
    assert_within(kernels.soft_cap(x.clone().T, cap), exact.T, 8 * unit(torch.float32) * exact.abs().T)


def test_tiny_numbers_stay(kernels: Kernels, dtype: torch.dtype, device: torch.device) -> None:
    x = torch.tensor([[0.0, 1e-4, -1e-3]]).to(device, dtype)
    exact = torch.tanh(x.double())
    assert_within(kernels.soft_cap(x.clone(), 1.0), exact, 8 * unit(torch.float32) * exact.abs())


def test_nothing_to_bound(kernels: Kernels, dtype: torch.dtype, device: torch.device) -> None:
    assert kernels.soft_cap(torch.empty(0, 5).to(device, dtype), 1.0).shape == (0, 5)
