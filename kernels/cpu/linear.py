"""Packed linear layers in C++ (`csrc/linear.h`): what `Kernels.pack_linear` makes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.cpu import _cpu
from paged_backend.kernels.quantized_weight import QuantizedWeight
from paged_backend.kernels.tensors import describe

Route = Literal["auto", "float32", "int16", "int8"]
"""The arithmetic of quantised weights. "float32" multiplies the weights' float32 values. "int16" and "int8" round each
row of activations to whole numbers of 16 or 8 bits, with a scale for every 256 or 192 inputs (or for the weight's
group where that is smaller), and sum whole-number products exactly. "auto" is the fastest that the processor has
instructions for: int8 with VNNI, int16 with AVX2, float32 elsewhere."""

WEIGHT_DTYPES = frozenset((torch.float32, torch.bfloat16, torch.float16))


class CpuLinear:
    """A linear layer's weight as one runtime's instruction set reads it. A row of its result has the same bits
    whatever rows come with it, and on any number of threads.

    Attributes:
        packed: the C++ layer.
        runtime: the threads that it packs and runs with.
        gated: whether it computes activation(gate) * up.
        num_inputs, num_outputs: widths of the rows that go in and come out.
        num_bytes: memory that it holds.
        route: the arithmetic, never "auto".
    """

    def __init__(
        self,
        runtime: _cpu.Runtime,
        weight: Tensor | QuantizedWeight,
        bias: Tensor | None = None,
        *,
        gated: bool = False,
        route: Route = "auto",
    ) -> None:
        """See `Kernels.pack_linear`. Nothing of the weight is kept.

        Raises:
            KernelError: the weight or bias is not as described there, or the route is not there with the runtime's
                instruction set or for a weight that is not quantised.
        """
        try:
            self.packed = _pack(runtime, weight, bias, gated, route)
        except ValueError as error:
            raise KernelError(str(error)) from None
        self.runtime = runtime
        self.gated: bool = self.packed.gated
        self.num_inputs: int = self.packed.num_inputs
        self.num_outputs: int = self.packed.num_outputs
        self.num_bytes: int = self.packed.num_bytes
        self.route: str = self.packed.route


def _pack(
    runtime: _cpu.Runtime, weight: Tensor | QuantizedWeight, bias: Tensor | None, gated: bool, route: Route
) -> _cpu.PackedLinear:
    if bias is not None:
        _check_bias(bias)
        bias = bias.detach()  # a parameter's history may not be given to other libraries
    if isinstance(weight, QuantizedWeight):
        if weight.is_float8:
            raise KernelError(
                "weight is fp8, which no CPU multiplies: quantize it to int8 (as small, more exact, and fast here), or "
                "choose kernel_backend reference."
            )
        return _cpu.pack_quantized_linear(
            runtime,
            weight.values,
            weight.scales.detach(),
            weight.bits,
            weight.group_size,
            bias=bias,
            gated=gated,
            route=route,
        )
    if route not in ("auto", "float32"):
        raise KernelError(f"route {route} is for quantised weights only.")
    if weight.dtype not in WEIGHT_DTYPES or weight.dim() != 2 or weight.device.type != "cpu" or 0 in weight.shape:
        got = f"{describe(weight)} on {weight.device.type}"
        raise KernelError(f"weight must be float [N, K] on the CPU, neither of them 0, got {got}.")
    return _cpu.pack_linear(runtime, weight.detach(), bias=bias, gated=gated)


def _check_bias(bias: Tensor) -> None:
    if bias.dtype != torch.float32 or bias.dim() != 1 or bias.device.type != "cpu":
        raise KernelError(f"bias must be float32 [N] on the CPU, got {describe(bias)} on {bias.device.type}.")
