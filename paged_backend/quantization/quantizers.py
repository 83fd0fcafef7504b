"""What the values of `quantization` in the configuration mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from paged_backend.kernels.quantized_weight import QuantizedWeight
from paged_backend.quantization.fp8 import quantize_fp8
from paged_backend.quantization.int4 import GROUP_SIZE, quantize_int4
from paged_backend.quantization.int8 import quantize_int8


@dataclass(frozen=True, slots=True)
class Quantizer:
    """How a model's linear layers are quantized; each takes float [N, K], all finite, and a number of threads.

    Attributes:
        layer: those inside the model.
        head: the one that makes the logits.
        group_size: inputs that share a scale in those inside the model; None where all of an output's do.
    """

    layer: Callable[[Tensor, int], QuantizedWeight]
    head: Callable[[Tensor, int], QuantizedWeight]
    group_size: int | None = None


# The head's error goes straight into the logits, and so into which token is the first; the others' errors are
# averaged on the way. int8 there costs little: a third of fp8's error, whose 3 bits of mantissa are all that a number
# near its row's largest has.
QUANTIZERS: MappingProxyType[str, Quantizer] = MappingProxyType(
    {
        "int8": Quantizer(quantize_int8, quantize_int8),
        "int4": Quantizer(quantize_int4, quantize_int8, GROUP_SIZE),
        "fp8": Quantizer(quantize_fp8, quantize_int8),
    }
)
"""By the names in the configuration."""
