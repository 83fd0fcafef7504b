"""Rotary embedding against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from paged_backend.kernels.registry import select_kernels
from tests.kernels.rounding import FLOAT_DTYPES, assert_within, unit

KERNELS = select_kernels("reference")


def angles(num_rows: int, num_rotated: int) -> tuple[Tensor, Tensor]:
    frequency = 10000.0 ** -(torch.arange(0, num_rotated, 2) / num_rotated)
    angle = torch.arange(num_rows).unsqueeze(1) * frequency
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair as a complex number, multiplied with e^(i * angle)."""
    half = cos.shape[-1] // 2
    pairs = torch.complex(x[..., :half].double(), x[..., half : 2 * half].double())
    product = pairs * torch.complex(cos[:, :half].double(), sin[:, :half].double()).unsqueeze(1)
    return torch.cat((product.real, product.imag, x[..., 2 * half :].double()), dim=-1)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize(("head_size", "num_rotated"), [(2, 2), (16, 16), (80, 32), (64, 64), (64, 0)])
def test_rotary(dtype: torch.dtype, head_size: int, num_rotated: int) -> None:
    # As the decoder has them: views into one projection.
    both = torch.randn(9, 5, head_size).to(dtype)
    query, key = both[:, :3], both[:, 3:]
    cos, sin = angles(9, num_rotated)
    for x, out in zip((query, key), KERNELS.rotary(query, key, cos, sin), strict=True):
        assert out.shape == x.shape and out.dtype == dtype
        bound = 4 * unit(torch.float32) * 2 * x.double().abs().amax()
        assert_within(out, turned(x, cos, sin), bound)
        assert torch.equal(out[0], x[0])  # position 0 turns nothing
        assert torch.equal(out[..., num_rotated:], x[..., num_rotated:])
