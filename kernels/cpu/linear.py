"""Linear layers packed for the C++ kernels (`csrc/linear.h`)."""

from __future__ import annotations

from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.cpu import _cpu
from paged_backend.kernels.quantized_weight import QuantizedWeight


class CpuLinear:
    """A layer as `CpuKernels.pack_linear` made it; see `LinearWeight`.

    Attributes:
        packed: the C++ object.
        gated: whether it computes activation(gate) * up.
    """

    def __init__(self, packed: _cpu.PackedLinear) -> None:
        self.packed = packed
        self.gated: bool = packed.gated
        self.num_inputs: int = packed.num_inputs
        self.num_outputs: int = packed.num_outputs
        self.num_bytes: int = packed.num_bytes


def pack_linear(runtime: _cpu.Runtime, weight: Tensor | QuantizedWeight, bias: Tensor | None, gated: bool) -> CpuLinear:
    """See `Kernels.pack_linear`; the arguments are checked."""
    try:
        if isinstance(weight, QuantizedWeight):
            return CpuLinear(
                _cpu.pack_quantized_linear(
                    runtime, weight.values, weight.scales, weight.bits, weight.group_size, bias, gated
                )
            )
        return CpuLinear(_cpu.pack_linear(runtime, weight, bias, gated))
    except ValueError as error:
        raise KernelError(str(error)) from None
