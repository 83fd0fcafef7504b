"""RMS norm and layer norm against float64."""

from __future__ import annotations

import pytest
import torch

from paged_backend.kernels.registry import select_kernels
from tests.kernels.rounding import FLOAT_DTYPES, assert_within, unit

KERNELS = select_kernels("reference")
shapes = pytest.mark.parametrize("shape", [(1, 1), (3, 8), (5, 4, 64), (2, 576)], ids=str)
dtypes = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
EPS = 1e-5


@shapes
@dtypes
@pytest.mark.parametrize("with_residual", [False, True])
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype, with_residual: bool) -> None:
    x = torch.randn(shape).to(dtype)
    weight = torch.randn(shape[-1]).to(dtype)
    residual = torch.randn(shape).to(dtype) if with_residual else None
    out, hidden = KERNELS.rms_norm(x, weight, EPS, residual)
    if residual is None:
        assert hidden is x
    else:
        assert_within(hidden, x.double() + residual.double(), 0.0)
    wide = hidden.double()
    exact = wide / (wide.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()
    # A sum of H positive numbers errs by H roundings at most, halved by the root; then some single
    # operations.
    assert_within(out, exact, exact.abs() * (shape[-1] / 2 + 8) * unit(torch.float32))


@shapes
@dtypes
@pytest.mark.parametrize("affine", ["both", "weight", "none"])
def test_layer_norm(shape: tuple[int, ...], dtype: torch.dtype, affine: str) -> None:
    x = torch.randn(shape).to(dtype)
    residual = torch.randn(shape).to(dtype)
    size = shape[-1]
    weight = None if affine == "none" else torch.randn(size).to(dtype)
    bias = torch.randn(size).to(dtype) if affine == "both" else None
    out, hidden = KERNELS.layer_norm(x, weight, bias, EPS, residual)
    assert_within(hidden, x.double() + residual.double(), 0.0)
    wide = hidden.double()
    centred = wide - wide.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + EPS).sqrt()
    scaled = centred / deviation
    wide_weight = torch.ones(size).double() if weight is None else weight.double()
    wide_bias = torch.zeros(size).double() if bias is None else bias.double()
    exact = scaled * wide_weight + wide_bias
    # The mean errs relative to the mean magnitude, which the deviation may be small against.
    roundings = (size + 8) * unit(torch.float32)
    mean_error = wide.abs().mean(-1, keepdim=True) * roundings / deviation
    error = (scaled.abs() * roundings + mean_error * (1 + scaled.abs())) * wide_weight.abs()
    assert_within(out, exact, error + 2 * unit(torch.float32) * exact.abs())
    assert KERNELS.layer_norm(x, weight, bias, EPS)[1] is x
