"""Weights of linear layers as the Triton kernels read them: what `Kernels.pack_linear` makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from paged_backend.errors import KernelError
from paged_backend.kernels.quantized_weight import QuantizedWeight

Format = Literal["float", "int8", "int4", "fp8"]

_BLOCK_K = {"float": (64,), "int8": (64, 32), "int4": (128,), "fp8": (128,)}
"""Inputs that are multiplied at once, the best first; a scale must serve all of them (int4: each quarter of them)."""
FLOAT32_BLOCK_K = 32
FLOAT8_UNIT = 16
"""What the library's product of float8 wants N and K to be multiples of."""
_FLOAT8_CAPABILITY = (8, 9)


@dataclass(frozen=True, slots=True)
class TritonLinear:
    """A linear layer on a device. The rows of a gated one's weight take turns: a gate, its up, the next gate.

    Attributes:
        numbers: what is multiplied. "float": in the dtype of the activations [N, K]. "int8": uint8 [N, K filled up to
            a multiple of block_k], 128 more than meant. "int4": int16 [N, a quarter of that], 8 more than
            meant; of each block_k inputs the first quarter are in the lowest 4 bits, and so on. "fp8": float8_e4m3fn, N
            and K filled up to multiples of FLOAT8_UNIT.
        scales: float32 [N], one for each row; [groups, N], where group_size is positive; None for "float".
        bias: [N], in the activations' dtype where the library's product adds it, else float32; or None.
        format: what the numbers are.
        group_size: inputs that share a scale; 0: all of a row's.
        block_k: inputs that are multiplied at once.
        num_inputs, num_rows: K and N.
        gated: whether it computes activation(gate) * up.
        batch_invariant: a weight of "float" or "fp8" is multiplied by our own kernel, not by the library's.
    """

    numbers: Tensor
    scales: Tensor | None
    bias: Tensor | None
    format: Format
    group_size: int
    block_k: int
    num_inputs: int
    num_rows: int
    gated: bool
    batch_invariant: bool

    @property
    def num_outputs(self) -> int:
        """See `LinearWeight`."""
        return self.num_rows // 2 if self.gated else self.num_rows

    @property
    def num_bytes(self) -> int:
        """See `LinearWeight`."""
        return sum(tensor.nbytes for tensor in (self.numbers, self.scales, self.bias) if tensor is not None)

    @property
    def device(self) -> torch.device:
        """See `TensorLinear`."""
        return self.numbers.device


def pack_linear(
    weight: Tensor | QuantizedWeight,
    bias: Tensor | None,
    gated: bool,
    *,
    device: torch.device,
    dtype: torch.dtype,
    batch_invariant: bool,
) -> TritonLinear:
    """See `Kernels.pack_linear`.

    Args:
        weight, bias, gated: checked, on any device.
        device, dtype: of the activations. A float weight is rounded to dtype, where it has another one.
        batch_invariant: see `TritonLinear`.

    Raises:
        KernelError: the weight's groups are of a size that the kernels cannot serve, or the card does not have float8.
    """
    if isinstance(weight, QuantizedWeight):
        if weight.is_float8:
            return _pack_float8(weight, bias, gated, device, batch_invariant)
        return _pack_quantized(weight, bias, gated, device)
    numbers = weight.to(device, dtype)
    if bias is not None:
        bias = bias.to(device, torch.float32 if batch_invariant else dtype)
    return TritonLinear(
        numbers=_taking_turns(numbers, gated),
        scales=None,
        bias=None if bias is None else _taking_turns(bias, gated),
        format="float",
        group_size=0,
        block_k=FLOAT32_BLOCK_K if dtype == torch.float32 else _BLOCK_K["float"][0],
        num_inputs=numbers.shape[1],
        num_rows=numbers.shape[0],
        gated=gated,
        batch_invariant=batch_invariant,
    )


def _pack_quantized(weight: QuantizedWeight, bias: Tensor | None, gated: bool, device: torch.device) -> TritonLinear:
    format: Format = "int8" if weight.bits == 8 else "int4"
    num_inputs = weight.values.shape[1]
    group_size = 0 if weight.group_size >= num_inputs else weight.group_size
    shared = 1 if format == "int8" else 4
    block_k = next((size for size in _BLOCK_K[format] if group_size % (size // shared) == 0), None)
    if block_k is None:
        raise KernelError(
            "weight's group_size must be a multiple of 32 or serve whole rows for the Triton kernels, got "
            f"{group_size}: quantize it with other groups, or choose kernel_backend reference."
        )
    values = _taking_turns(weight.values.to(device), gated)
    values = (functional.pad(values, (0, -num_inputs % block_k)) + (8 if format == "int4" else -128)).view(torch.uint8)
    if format == "int4":
        quarters = values.view(len(values), -1, 4, block_k // 4).int().unbind(2)
        quads = quarters[0] | quarters[1] << 4 | quarters[2] << 8 | quarters[3] << 12
        values = quads.to(torch.int16).view(len(values), -1)
    scales = _taking_turns(weight.scales.to(device), gated)
    if group_size:  # the zeros that values were filled up with have scales too
        num_groups = -(-(num_inputs + -num_inputs % block_k) // group_size)
        scales = functional.pad(scales, (0, num_groups - scales.shape[1])).T
    return TritonLinear(
        numbers=values,
        scales=scales.contiguous() if group_size else scales[:, 0].contiguous(),
        bias=None if bias is None else _taking_turns(bias.to(device), gated),
        format=format,
        group_size=group_size,
        block_k=block_k,
        num_inputs=num_inputs,
        num_rows=len(values),
        gated=gated,
        batch_invariant=True,
    )


def _pack_float8(
    weight: QuantizedWeight, bias: Tensor | None, gated: bool, device: torch.device, batch_invariant: bool
) -> TritonLinear:
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < _FLOAT8_CAPABILITY:
        raise KernelError(
            f"weight is fp8, which {torch.cuda.get_device_name(device)} cannot multiply: it takes compute capability "
            "8.9 (Ada) or newer. Quantize it to int8, or choose kernel_backend reference."
        )
    num_rows, num_inputs = weight.values.shape
    # Zeros of float8 are zero bytes, and not every operation is there for float8.
    values = _taking_turns(weight.values.view(torch.uint8).to(device), gated)
    values = functional.pad(values, (0, -num_inputs % FLOAT8_UNIT, 0, -num_rows % FLOAT8_UNIT))
    return TritonLinear(
        numbers=values.view(torch.float8_e4m3fn),
        scales=_taking_turns(weight.scales[:, 0].to(device), gated),
        bias=None if bias is None else _taking_turns(bias.to(device), gated),
        format="fp8",
        group_size=0,
        block_k=_BLOCK_K["fp8"][0],
        num_inputs=num_inputs,
        num_rows=num_rows,
        gated=gated,
        batch_invariant=batch_invariant,
    )


def _taking_turns(rows: Tensor, gated: bool) -> Tensor:
    """A gated layer's gates and ups, which come one half after the other, in turns; another layer's as they are."""
    if not gated:
        return rows.contiguous()
    return rows.view(2, -1, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape)
