"""RMS norm and layer norm against float64."""

from __future__ import annotations

import pytest
import torch

from paged_backend.kernels.interface import Kernels
from tests.kernels.implementations import implementations
from tests.kernels.norm_case import check_layer_norm, check_rms_norm

shapes = pytest.mark.parametrize("shape", [(1, 1), (3, 8), (5, 64), (2, 576), (0, 16), (70, 33)], ids=str)


@shapes
@implementations
def test_rms_norm(kernels: Kernels, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    check_rms_norm(kernels, dtype, shape, "cpu")


@shapes
@implementations
@pytest.mark.parametrize("affine", ["both", "weight", "none"])
def test_layer_norm(kernels: Kernels, dtype: torch.dtype, shape: tuple[int, int], affine: str) -> None:
    check_layer_norm(kernels, dtype, shape, affine, "cpu")
