"""Linear against float64."""

from __future__ import annotations

import pytest
import torch

from paged_backend.kernels.registry import select_kernels
from tests.kernels.rounding import FLOAT_DTYPES, assert_within, unit

KERNELS = select_kernels("reference")


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("weight_dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 64, 48), (7, 100, 3), (33, 65, 130)], ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear(dtype: torch.dtype, weight_dtype: torch.dtype, shape: tuple[int, int, int], with_bias: bool) -> None:
    num_rows, num_inputs, num_outputs = shape
    x = torch.randn(num_rows, num_inputs).to(dtype)
    weight = torch.randn(num_outputs, num_inputs).to(weight_dtype)
    bias = torch.randn(num_outputs).to(weight_dtype) if with_bias else None
    out = KERNELS.linear(x, weight, bias)
    assert out.dtype == dtype and out.shape == (num_rows, num_outputs)
    wide_bias = torch.zeros(num_outputs).double() if bias is None else bias.double()
    exact = x.double() @ weight.double().T + wide_bias
    magnitude = x.double().abs() @ weight.double().abs().T + wide_bias.abs()
    assert_within(out, exact, magnitude * (num_inputs + 1) * unit(torch.float32))


def test_leading_dimensions_pass_through() -> None:
    x, weight = torch.randn(2, 3, 4), torch.randn(5, 4)
    assert KERNELS.linear(x, weight).shape == (2, 3, 5)
