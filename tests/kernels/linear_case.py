"""What the tests of packed linear layers share: weights in every format, exact results, and bounds of the error."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.cpu import _cpu
from paged_backend.kernels.cpu.kernels import CpuKernels
from paged_backend.kernels.cpu.linear import CpuLinear, Route
from paged_backend.kernels.quantized_weight import VALUE_RANGES, QuantizedWeight

INSTRUCTION_SETS = tuple(_cpu.available_instruction_sets())
FLOAT_FORMATS = ("float32", "bfloat16", "float16")
# Bits and group size, "row" for one scale a row. 24 and 100 are no multiples of anything that a kernel likes.
QUANTIZED_FORMATS = ("int8/row", "int8/128", "int8/100", "int4/32", "int4/64", "int4/128", "int4/24")
ROUTES: tuple[Route, ...] = ("float32", "int16", "int8")
UNIT = 2.0**-24  # largest relative error of one rounding to float32
SEGMENT_SIZES = {"int16": 256, "int8": 128}
LARGEST = {"int16": 32767, "int8": 127}


@cache
def runtime(instruction_set: str, num_threads: int = 1) -> _cpu.Runtime:
    """One for all tests: threads are not cheap."""
    return _cpu.Runtime(num_threads, instruction_set)


def quantize(weight: Tensor, bits: int, group_size: int) -> QuantizedWeight:
    """Rounds to the nearest of the numbers that the largest of each group allows."""
    num_outputs, num_inputs = weight.shape
    low, high = VALUE_RANGES[bits]
    num_groups = -(-num_inputs // group_size)
    padded = torch.nn.functional.pad(weight, (0, num_groups * group_size - num_inputs))
    groups = padded.view(num_outputs, num_groups, group_size)
    scales = groups.abs().amax(2).clamp_min(1e-20) / high
    values = (groups / scales[:, :, None]).round().clamp(low, high).to(torch.int8)
    return QuantizedWeight(values.view(num_outputs, -1)[:, :num_inputs].contiguous(), scales, bits, group_size)


def make_weight(name: str, num_outputs: int, num_inputs: int) -> Tensor | QuantizedWeight:
    """A random weight of FLOAT_FORMATS or QUANTIZED_FORMATS."""
    weight = torch.randn(num_outputs, num_inputs)
    if name in FLOAT_FORMATS:
        return weight.to(getattr(torch, name))
    bits, group = name.removeprefix("int").split("/")
    return quantize(weight, int(bits), num_inputs if group == "row" else min(int(group), num_inputs))


def exact_weight(weight: Tensor | QuantizedWeight) -> Tensor:
    """The numbers that are meant, float64 [N, K]."""
    if isinstance(weight, Tensor):
        return weight.double()
    spread = weight.scales.double().repeat_interleave(weight.group_size, dim=1)
    return weight.values.double() * spread[:, : weight.values.shape[1]]


@cache
def _kernels(instruction_set: str, num_threads: int) -> CpuKernels:
    return CpuKernels(num_threads, instruction_set)


@dataclass(frozen=True)
class Layer:
    """A packed weight, and the kernels that compute with it."""

    kernels: CpuKernels
    weight: CpuLinear

    def __call__(self, x: Tensor, *, activation: str | None = None, residual: Tensor | None = None) -> Tensor:
        return self.kernels.linear(x, self.weight, activation=activation, residual=residual)


def pack(
    instruction_set: str,
    weight: Tensor | QuantizedWeight,
    bias: Tensor | None = None,
    *,
    gated: bool = False,
    route: Route = "auto",
    num_threads: int = 1,
) -> Layer | None:
    """The layer, or None where the instruction set does not have the route."""
    try:
        packed = CpuLinear(runtime(instruction_set, num_threads), weight, bias, gated=gated, route=route)
    except KernelError as error:
        if "is not there with instruction set" in str(error):
            return None
        raise
    return Layer(_kernels(instruction_set, num_threads), packed)


@dataclass(frozen=True)
class Sums:
    """x @ weight.T in float64, and a bound of a route's absolute error.

    float32: a sum of K products in any order, each operation rounded once, is off by at most K * UNIT * sum |x w|;
    one more rounding is that of a quantised weight times its scale. int16 and int8: rounding an activation is off by
    at most half a step of its segment, largest / (127 or 32767), and what the weights make of that adds up. Summing the
    scaled segments then rounds at most four times a segment (both scales' product, the whole sum, its product, the
    total).
    """

    exact: Tensor
    bound: Tensor

    @classmethod
    def of(cls, x: Tensor, weight: Tensor | QuantizedWeight, route: str) -> Sums:
        wide_x, wide = x.double(), exact_weight(weight)
        exact = wide_x @ wide.T
        magnitude = wide_x.abs() @ wide.abs().T
        if isinstance(weight, Tensor) or route == "float32":
            return cls(exact, (x.shape[1] + 2) * UNIT * magnitude)
        size, largest = SEGMENT_SIZES[route], LARGEST[route]
        steps = torch.zeros_like(wide_x)
        num_segments = 0
        for group in range(0, x.shape[1], weight.group_size):
            group_end = min(group + weight.group_size, x.shape[1])
            for begin in range(group, group_end, size):
                segment = slice(begin, min(begin + size, group_end))
                steps[:, segment] = wide_x[:, segment].abs().amax(1, keepdim=True) / largest
                num_segments += 1
        # The step itself is rounded, and so is what it is divided by.
        rounding = (0.5 + 4 * largest * UNIT) * steps @ wide.abs().T
        return cls(exact, rounding + 4 * (num_segments + 1) * UNIT * (magnitude + rounding))
