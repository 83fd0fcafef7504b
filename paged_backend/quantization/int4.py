"""4 bits, one scale for each group of 64 inputs of each output."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from paged_backend.kernels.quantized_weight import QuantizedWeight
from paged_backend.quantization.least_squares import for_parts, nearest_values

GROUP_SIZE = 64
"""Half the inputs would lower the error by a tenth, for a tenth more bytes."""

_LOW, _HIGH = -8, 7
_BECOMES = (-8.0, -8.5, -9.2, 7.0)
"""What a group's largest number is divided down to before it is rounded; past -8 it is clipped for the others' sake."""


def quantize_int4(weight: Tensor, num_threads: int = 1) -> QuantizedWeight:
    """Rounds each group to multiples of its scale, the scale chosen for the least squared error.

    Args:
        weight: float [N, K], all finite. Where K is no multiple of the group's size, the last group is shorter.
        num_threads: that work on it.
    """
    num_outputs, num_inputs = weight.shape
    group_size = min(GROUP_SIZE, num_inputs)
    num_groups = -(-num_inputs // group_size)
    values = torch.empty(num_outputs, num_inputs, dtype=torch.int8)
    scales = torch.empty(num_outputs, num_groups)

    def quantize(rows: Tensor, part: slice) -> None:
        # Zeros, which change neither the largest number nor the error.
        padded = functional.pad(rows, (0, num_groups * group_size - num_inputs))
        groups = padded.reshape(-1, group_size)
        largest = groups.gather(1, groups.abs().argmax(dim=1, keepdim=True))
        found, group_scales = nearest_values(groups, [largest / goal for goal in _BECOMES], _LOW, _HIGH)
        values[part] = found.view(len(rows), -1)[:, :num_inputs]
        scales[part] = group_scales.view(len(rows), -1)

    for_parts(weight, num_threads, quantize)
    return QuantizedWeight(values, scales, bits=4, group_size=group_size)
