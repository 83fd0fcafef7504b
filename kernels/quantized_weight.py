"""A linear layer's weight as small whole numbers and scales: what quantization makes, and `pack_linear` takes."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.tensors import check_tensor, describe

VALUE_RANGES: MappingProxyType[int, tuple[int, int]] = MappingProxyType({8: (-127, 127), 4: (-8, 7)})
"""Bits to the smallest and the largest value."""


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A weight [N, K]: each number is values * scales of its row and group.

    Attributes:
        values: int8 [N, K], contiguous; -127 .. 127 for 8 bits, -8 .. 7 for 4 bits (one value a byte here: packing is
            an implementation's own). Or, for 8 bits with one scale a row, float8_e4m3fn: finite ones.
        scales: float32 [N, ceil(K / group_size)], contiguous, finite. Group g of a row serves the inputs
            g * group_size .. (g + 1) * group_size - 1; the last group may be shorter.
        bits: 8 or 4.
        group_size: inputs that share a scale; K for one scale a row.

    Raises:
        KernelError: a tensor is not as described, or a value is out of range.
    """

    values: Tensor
    scales: Tensor
    bits: int
    group_size: int

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or self.bits not in VALUE_RANGES:
            raise KernelError(f"bits must be 8 or 4, got {self.bits!r}.")
        values, scales = self.values, self.scales
        for name, tensor in (("values", values), ("scales", scales)):
            check_tensor(name, tensor)
            if tensor.is_meta:
                raise KernelError(f"{name} must hold numbers, got {describe(tensor)} on {tensor.device}.")
        if (
            not (values.dtype == torch.int8 or (self.is_float8 and self.bits == 8))
            or values.dim() != 2
            or 0 in values.shape
            or not values.is_contiguous()
        ):
            raise KernelError(
                "values must be contiguous int8 (or, for 8 bits, float8_e4m3fn) [N, K], neither of them 0, got "
                f"{describe(values)}."
            )
        num_outputs, num_inputs = values.shape
        if not isinstance(self.group_size, int) or not 1 <= self.group_size <= num_inputs:
            raise KernelError(f"group_size must be in 1..{num_inputs}, got {self.group_size!r}.")
        shape = (num_outputs, -(-num_inputs // self.group_size))
        if scales.dtype != torch.float32 or scales.shape != shape or not scales.is_contiguous():
            raise KernelError(f"scales must be contiguous float32 {list(shape)}, got {describe(scales)}.")
        if self.is_float8:
            self._check_float8()
        else:
            low, high = VALUE_RANGES[self.bits]
            smallest, largest = (int(bound) for bound in values.aminmax())
            if smallest < low or largest > high:
                raise KernelError(f"values of {self.bits} bits must be in {low}..{high}, got {smallest}..{largest}.")
        if not scales.isfinite().all():
            raise KernelError("scales must be finite.")

    @property
    def is_float8(self) -> bool:
        """Whether values are float8_e4m3fn, not whole numbers."""
        return self.values.dtype == torch.float8_e4m3fn

    def _check_float8(self) -> None:
        if self.group_size != self.values.shape[1]:
            raise KernelError(
                f"group_size of float8_e4m3fn values must be all {self.values.shape[1]} inputs, got {self.group_size}."
            )
        if not (self.values.view(torch.uint8) & 127 < 127).all():  # 127 is what is no number
            raise KernelError("values must be finite.")

    def dequantized(self) -> Tensor:
        """The numbers that are meant, float32 [N, K]: each product rounded once."""
        num_inputs = self.values.shape[1]
        spread = self.scales.repeat_interleave(self.group_size, dim=1)[:, :num_inputs]
        return self.values.float() * spread
