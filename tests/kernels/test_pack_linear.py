"""Packed linear layers of every kind of weight against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.interface import Kernels
from paged_backend.kernels.quantized_weight import VALUE_RANGES, QuantizedWeight
from paged_backend.kernels.reference.kernels import ReferenceKernels
from tests.kernels.implementations import implementations
from tests.kernels.rounding import FLOAT_DTYPES, assert_within, unit

WEIGHTS = (*FLOAT_DTYPES, "int8", "int8 groups", "int4 32", "int4 64", "int4 128")
SHAPES = [(1, 1, 1), (1, 64, 48), (7, 100, 3), (33, 65, 130), (0, 8, 8), (5, 256, 64)]


def random_weight(
    kind: torch.dtype | str, num_outputs: int, num_inputs: int
) -> tuple[Tensor | QuantizedWeight, Tensor]:
    """A weight, and what it means in float64."""
    if isinstance(kind, torch.dtype):
        weight = torch.randn(num_outputs, num_inputs).to(kind)
        return weight, weight.double()
    bits = int(kind[3])
    group_size = {"int8": num_inputs, "int8 groups": 32}.get(kind) or int(kind[5:])
    group_size = min(group_size, num_inputs)
    low, high = VALUE_RANGES[bits]
    values = torch.randint(low, high + 1, (num_outputs, num_inputs), dtype=torch.int8)
    scales = torch.rand(num_outputs, -(-num_inputs // group_size)) / high
    spread = scales.double().repeat_interleave(group_size, dim=1)[:, :num_inputs]
    return QuantizedWeight(values, scales, bits, group_size), values.double() * spread


def rounded_activations_error(x: Tensor, weight: Tensor, largest: int) -> Tensor:
    """Of activations rounded to -largest .. largest, a scale for 256 inputs at most: each is off by half a step."""
    error = torch.zeros(len(x), len(weight), dtype=torch.float64)
    for numbers, columns in zip(x.double().abs().split(256, 1), weight.abs().split(256, 1), strict=True):
        step = numbers.amax(1, keepdim=True) / largest
        error += step / 2 * 1.001 * columns.sum(1)
    return error


@implementations
@pytest.mark.parametrize("kind", WEIGHTS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("extra", ["nothing", "bias", "residual", "both"])
def test_linear(
    kernels: Kernels, dtype: torch.dtype, kind: torch.dtype | str, shape: tuple[int, int, int], extra: str
) -> None:
    num_rows, num_inputs, num_outputs = shape
    x = torch.randn(num_rows, num_inputs).to(dtype)
    weight, exact_weight = random_weight(kind, num_outputs, num_inputs)
    bias = torch.randn(num_outputs) if extra in ("bias", "both") else None
    residual = torch.randn(num_rows, num_outputs).to(dtype) if extra in ("residual", "both") else None
    packed = kernels.pack_linear(weight, bias)
    assert (packed.num_inputs, packed.num_outputs) == (num_inputs, num_outputs)
    assert packed.num_bytes >= num_inputs * num_outputs // 2
    out = kernels.linear(x, packed, residual=None if residual is None else residual.clone())
    assert out.dtype == dtype and out.shape == (num_rows, num_outputs)
    exact = x.double() @ exact_weight.T
    magnitude = x.double().abs() @ exact_weight.abs().T
    for term in (bias, residual):
        if term is not None:
            exact, magnitude = exact + term.double(), magnitude + term.double().abs()
    # K products, their sum, a rounding of each weight where it is dequantized, bias and residual.
    error = magnitude * (num_inputs + 3) * unit(torch.float32)
    largest = {"int8": 127, "int16": 32767}.get(getattr(packed, "route", "float32"))
    if largest is not None:
        error = error + rounded_activations_error(x, exact_weight, largest)
    assert_within(out, exact, error)


@implementations
def test_weights_with_strides_between_rows(kernels: Kernels, dtype: torch.dtype) -> None:
    wide = torch.randn(24, 50)
    x = torch.randn(3, 32).to(dtype)
    strided, packed = kernels.pack_linear(wide[:, 5:37]), kernels.pack_linear(wide[:, 5:37].contiguous())
    assert torch.equal(kernels.linear(x, strided), kernels.linear(x, packed))


@implementations
def test_a_weight_of_another_implementation_is_refused(kernels: Kernels, dtype: torch.dtype) -> None:
    class Other:
        num_inputs = num_outputs = num_bytes = 8

    with pytest.raises(KernelError, match=r"^weight\b"):
        kernels.linear(torch.zeros(1, 8).to(dtype), Other())


def test_the_reference_shares_a_float32_weight() -> None:
    weight = torch.randn(4, 8)
    assert ReferenceKernels().pack_linear(weight).weight is weight
