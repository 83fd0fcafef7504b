"""8 bits of floating point (e4m3: 4 of exponent, 3 of mantissa), one scale for each output channel."""

from __future__ import annotations

import torch
from torch import Tensor

from paged_backend.kernels.quantized_weight import QuantizedWeight
from paged_backend.quantization.least_squares import for_parts

_LARGEST = torch.finfo(torch.float8_e4m3fn).max


def quantize_fp8(weight: Tensor, num_threads: int = 1) -> QuantizedWeight:
    """Rounds each row to float8_e4m3fn, times a scale with which its largest number becomes 448.

    Args:
        weight: float [N, K], all finite.
        num_threads: that work on it.
    """
    num_outputs, num_inputs = weight.shape
    values = torch.empty(num_outputs, num_inputs, dtype=torch.float8_e4m3fn)
    scales = torch.empty(num_outputs, 1)

    def quantize(rows: Tensor, part: slice) -> None:
        scale = rows.abs().amax(dim=1, keepdim=True) / _LARGEST
        divisor = torch.where(scale == 0, torch.inf, scale)
        values[part] = (rows / divisor).clamp_(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)
        scales[part] = scale

    for_parts(weight, num_threads, quantize)
    return QuantizedWeight(values, scales, bits=8, group_size=num_inputs)
