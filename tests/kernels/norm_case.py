"""RMS norm and layer norm against float64."""

from __future__ import annotations

import torch

from paged_backend.kernels.interface import Kernels
from tests.kernels.rounding import assert_within, unit

EPS = 1e-5


def check_rms_norm(kernels: Kernels, dtype: torch.dtype, shape: tuple[int, int], device: torch.device | str) -> None:
    x = torch.randn(shape).to(device, dtype)
    weight = torch.randn(shape[1]).to(device)
    out = kernels.rms_norm(x.clone(), weight, EPS)
    wide = x.double()
    exact = wide / (wide.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()
    # A sum of H positive numbers errs by H roundings at most, halved by the root; then some single
    # operations.
    assert out.dtype == dtype
    assert_within(out, exact, exact.abs() * (shape[1] / 2 + 8) * unit(torch.float32))


def check_layer_norm(
    kernels: Kernels, dtype: torch.dtype, shape: tuple[int, int], affine: str, device: torch.device | str
) -> None:
    """Args:
    affine: "both", "weight" or "none".
    """
    x = torch.randn(shape).to(device, dtype) + 3
    size = shape[1]
    weight = None if affine == "none" else torch.randn(size).to(device)
    bias = torch.randn(size).to(device) if affine == "both" else None
    out = kernels.layer_norm(x.clone(), weight, bias, EPS)
    wide = x.double()
    centred = wide - wide.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + EPS).sqrt()
    scaled = centred / deviation
    wide_weight = torch.ones(size).to(x).double() if weight is None else weight.double()
    wide_bias = torch.zeros(size).to(x).double() if bias is None else bias.double()
    exact = scaled * wide_weight + wide_bias
    # The mean errs relative to the mean magnitude, which the deviation may be small against.
    roundings = (size + 8) * unit(torch.float32)
    mean_error = wide.abs().mean(-1, keepdim=True) * roundings / deviation
    error = (scaled.abs() * roundings + mean_error * (1 + scaled.abs())) * wide_weight.abs()
    assert out.dtype == dtype
    assert_within(out, exact, error + 2 * unit(torch.float32) * exact.abs())
