"""8 bits, one scale for each output channel."""

from __future__ import annotations

import torch
from torch import Tensor

from paged_backend.kernels.quantized_weight import QuantizedWeight
from paged_backend.quantization.least_squares import for_parts, nearest_values

_LARGEST = 127


def quantize_int8(weight: Tensor, num_threads: int = 1) -> QuantizedWeight:
    """Rounds each row to multiples of its scale. Its largest number becomes 127: at 8 bits clipping gains nothing.

    Args:
        weight: float [N, K], all finite.
        num_threads: that work on it.
    """
    num_outputs, num_inputs = weight.shape
    values = torch.empty(num_outputs, num_inputs, dtype=torch.int8)
    scales = torch.empty(num_outputs, 1)

    def quantize(rows: Tensor, part: slice) -> None:
        largest = rows.abs().amax(dim=1, keepdim=True)
        values[part], scales[part] = nearest_values(rows, [largest / _LARGEST], -_LARGEST, _LARGEST)

    for_parts(weight, num_threads, quantize)
    return QuantizedWeight(values, scales, bits=8, group_size=num_inputs)
