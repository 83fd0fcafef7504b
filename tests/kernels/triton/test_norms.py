"""Triton's norms against float64; a row's bits are its own."""

from __future__ import annotations

import pytest
import torch

from paged_backend.errors import KernelError
from paged_backend.kernels.interface import Kernels
from tests.kernels.norm_case import check_layer_norm, check_rms_norm

SHAPES = [(1, 1), (3, 8), (2, 576), (0, 16), (5, 33), (1, 4100)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rms_norm(kernels: Kernels, dtype: torch.dtype, device: torch.device, shape: tuple[int, int]) -> None:
    check_rms_norm(kernels, dtype, shape, device)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("affine", ["both", "weight", "none"])
def test_layer_norm(
    kernels: Kernels, dtype: torch.dtype, device: torch.device, shape: tuple[int, int], affine: str
) -> None:
    check_layer_norm(kernels, dtype, shape, affine, device)


def test_rows_apart_and_alone(kernels: Kernels, dtype: torch.dtype, device: torch.device) -> None:
    """Rows that lie apart, or whose numbers do, are read where they are; and a row's bits are those it has alone."""
    x = torch.randn(48, 96).to(device, dtype)
    weight = torch.randn(40).to(device)
    for rows in (x[::7, 20:60], x[:40, :5].T):
        expected = torch.cat([kernels.rms_norm(row.contiguous()[None], weight, 1e-6) for row in rows])
        assert torch.equal(kernels.rms_norm(rows, weight, 1e-6), expected)


def test_what_does_not_fit_is_said(kernels: Kernels, dtype: torch.dtype, device: torch.device) -> None:
    with pytest.raises(KernelError, match="x must have rows of at most 32768 numbers, got a width of 32769"):
        kernels.rms_norm(torch.zeros(1, 32769).to(device, dtype), torch.zeros(32769).to(device), 1e-6)
