"""int8 and int4 weights: what they can hold exactly they hold exactly, and what they lose is bounded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from paged_backend.kernels.quantized_weight import VALUE_RANGES, QuantizedWeight
from paged_backend.quantization.fp8 import quantize_fp8
from paged_backend.quantization.int4 import GROUP_SIZE, quantize_int4
from paged_backend.quantization.int8 import quantize_int8
from paged_backend.quantization.least_squares import nearest_values

SHAPES = [(1, 1), (3, 63), (5, 64), (2, 65), (7, 200), (300, 1000), (1, 4099), (2, 7)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
formats = pytest.mark.parametrize("quantize", [quantize_int8, quantize_int4])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


@shapes
@formats
@dtypes
def test_error_is_bounded(
    quantize: Callable[[Tensor], QuantizedWeight], shape: tuple[int, int], dtype: torch.dtype
) -> None:
    """In each group no worse than plain rounding, whose every number is off by half a step at most.

    A step of the first candidate is the largest number / 127 (8 bits), or / 8 (4 bits): there the largest becomes -8,
    and what comes near +8 is cut to 7, which is off by a step at most.
    """
    torch.manual_seed(1)
    weight = torch.randn(shape).to(dtype)
    quantized = quantize(weight)
    assert quantized.values.shape == shape
    largest_value = -VALUE_RANGES[quantized.bits][0]
    worst_step = 0.5 if quantized.bits == 8 else 1.0
    wide = quantized.dequantized().double()
    groups = (tensor.split(quantized.group_size, dim=1) for tensor in (weight.double(), wide))
    for exact, got in zip(*groups, strict=True):
        error = (exact - got).square().sum(1)
        step = exact.abs().amax(1) / largest_value
        # Scales and comparisons are in float32.
        assert bool((error <= exact.shape[1] * (worst_step * step).square() * (1 + 1e-4)).all())
        assert bool((error <= exact.square().sum(1) * (1 + 1e-4)).all()), "worse than all zeros"


@pytest.mark.parametrize(("quantize", "expected"), [(quantize_int8, 0.0078), (quantize_int4, 0.0915)])
def test_error_of_normal_weights(quantize: Callable[[Tensor], QuantizedWeight], expected: float) -> None:
    torch.manual_seed(2)
    weight = torch.randn(256, 1024)
    error = (quantize(weight).dequantized() - weight).square().mean().sqrt().item()
    assert error == pytest.approx(expected, rel=0.02)


@formats
@pytest.mark.parametrize("shape", [(4, 64), (3, 200), (2, 65), (5, 3)], ids=str)
def test_what_fits_is_exact(quantize: Callable[[Tensor], QuantizedWeight], shape: tuple[int, int]) -> None:
    """Whole multiples of a power of two, over the whole range of values in each group, come back to the bit."""
    torch.manual_seed(3)
    bits = 8 if quantize is quantize_int8 else 4
    low, high = VALUE_RANGES[bits]
    group_size = shape[1] if bits == 8 else GROUP_SIZE
    numbers = torch.randint(low, high + 1, shape)
    numbers[:, ::group_size] = low
    weight = numbers.float() * 2.0**-7
    quantized = quantize(weight)
    assert torch.equal(quantized.dequantized(), weight)
    assert torch.equal(quantized.values.long(), numbers)


def test_symmetric_int4_weights_are_exact() -> None:
    """-7 .. 7, as other tools make them, without the -8."""
    torch.manual_seed(4)
    numbers = torch.randint(-7, 8, (6, 128))
    numbers[:, ::GROUP_SIZE] = 7
    weight = numbers.float() * 0.25
    assert torch.equal(quantize_int4(weight).dequantized(), weight)


@formats
def test_zeros_and_next_to_nothing(quantize: Callable[[Tensor], QuantizedWeight]) -> None:
    weight = torch.zeros(4, 128)
    weight[1, 5] = 3.0
    weight[2] = 1e-44
    weight[3] = torch.randn(128) * 1e-30
    wide = quantize(weight).dequantized()
    assert not wide[0].any()
    assert wide[1, 5] == 3.0 and wide[1].count_nonzero() == 1
    assert wide[2].abs().max() <= 1e-43
    torch.testing.assert_close(wide[3] * 1e30, weight[3] * 1e30, rtol=0, atol=0.5)


def test_a_clipped_outlier_serves_the_others() -> None:
    """The search leaves the plain scale where another one is better for the whole group."""
    torch.manual_seed(5)
    weight = torch.randn(500, GROUP_SIZE)
    plain, plain_scales = nearest_values(
        weight, [weight.gather(1, weight.abs().argmax(1, keepdim=True)) / -8], *VALUE_RANGES[4]
    )
    plain_error = (plain * plain_scales - weight).square().sum(1)
    error = (quantize_int4(weight).dequantized() - weight).square().sum(1)
    assert bool((error <= plain_error * (1 + 1e-4)).all())
    assert error.sum() < 0.96 * plain_error.sum()


def test_the_best_scale_is_found_for_given_values() -> None:
    """A candidate only chooses the whole numbers; their scale is the least squares one."""
    x = torch.tensor([[1.0, 2.1, 2.9]])
    values, scales = nearest_values(x, [torch.tensor([[1.0]])], -8, 7)
    assert values.tolist() == [[1.0, 2.0, 3.0]]
    assert scales.item() == pytest.approx((1 + 4.2 + 8.7) / 14)


@formats
def test_any_number_of_threads(quantize: Callable[..., QuantizedWeight]) -> None:
    torch.manual_seed(7)
    weight = torch.randn(600, 700).bfloat16()
    expected = quantize(weight)
    for num_threads in (2, 5):
        again = quantize(weight, num_threads)
        assert torch.equal(again.values, expected.values)
        assert torch.equal(again.scales, expected.scales)


@formats
def test_memory_layout_does_not_matter(quantize: Callable[[Tensor], QuantizedWeight]) -> None:
    torch.manual_seed(6)
    weight = torch.randn(130, 70)
    turned = quantize(weight.T.contiguous().T)
    assert torch.equal(turned.values, quantize(weight).values)
    assert torch.equal(turned.scales, quantize(weight).scales)


@shapes
@dtypes
def test_fp8_rounds_to_the_nearest(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Each number is off by a sixteenth of itself at most, or by half of the smallest step, in its row's scale."""
    weight = torch.randn(shape).to(dtype)
    quantized = quantize_fp8(weight, 2)
    assert quantized.is_float8 and quantized.values.shape == shape
    exact = weight.double()
    scale = exact.abs().amax(1, keepdim=True) / 448
    bound = torch.maximum(exact.abs() / 16, scale * 2.0**-10)
    # The scale itself is rounded.
    assert bool(((quantized.dequantized().double() - exact).abs() <= bound * (1 + 1e-5)).all())


def test_fp8_of_next_to_nothing() -> None:
    weight = torch.zeros(3, 20)
    weight[1, 3] = 3.0
    weight[2] = 1e-44
    wide = quantize_fp8(weight).dequantized()
    assert not wide[0].any() and not wide[2].any()
    torch.testing.assert_close(wide[1], weight[1])
