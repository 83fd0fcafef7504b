"""Weights of linear layers as the Triton kernels read them: what `Kernels.pack_linear` makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from paged_backend.errors import KernelError
from paged_backend.kernels.quantized_weight import QuantizedWeight

Format = Literal["float", "int8", "int4"]

_BLOCK_K = {"float": (64,), "int8": (64, 32), "int4": (128, 64)}
"""Inputs that are multiplied at once, the best first; a scale must serve all of them (int4: each half of them)."""
_FLOAT32_BLOCK_K = 32


@dataclass(frozen=True, slots=True)
class TritonLinear:
    """A linear layer on a device. The rows of a gated one's weight take turns: a gate, its up, the next gate.

    Attributes:
        numbers: what is multiplied. "float": in the dtype of the activations [N, K]. "int8": [N, K filled up to a
            multiple of block_k]. "int4": int8 [N, half of that]; of each block_k inputs the first half are in the low
            4 bits, the others in the high ones.
        scales: float32 [N], one for each row; [groups, N], where group_size is positive; None for "float".
        bias: [N], in the activations' dtype where the library's product adds it, else float32; or None.
        format: what the numbers are.
        group_size: inputs that share a scale; 0: all of a row's.
        block_k: inputs that are multiplied at once.
        num_inputs: K.
        gated: whether it computes activation(gate) * up.
        batch_invariant: a float weight is multiplied by our own kernel, not by the library's.
    """

    numbers: Tensor
    scales: Tensor | None
    bias: Tensor | None
    format: Format
    group_size: int
    block_k: int
    num_inputs: int
    gated: bool
    batch_invariant: bool

    @property
    def num_rows(self) -> int:
        """Of the weight, N."""
        return self.numbers.shape[0]

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
        KernelError: the weight's groups are of a size that the kernels cannot serve.
    """
    if isinstance(weight, QuantizedWeight):
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
        block_k=_FLOAT32_BLOCK_K if dtype == torch.float32 else _BLOCK_K["float"][0],
        num_inputs=numbers.shape[1],
        gated=gated,
        batch_invariant=batch_invariant,
    )


def _pack_quantized(weight: QuantizedWeight, bias: Tensor | None, gated: bool, device: torch.device) -> TritonLinear:
    format: Format = "int8" if weight.bits == 8 else "int4"
    num_inputs = weight.values.shape[1]
    group_size = 0 if weight.group_size >= num_inputs else weight.group_size
    shared = 1 if format == "int8" else 2
    block_k = next((size for size in _BLOCK_K[format] if group_size % (size // shared) == 0), None)
    if block_k is None:
        raise KernelError(
            f"weight's group_size must be a multiple of {_BLOCK_K[format][-1] // shared} or serve whole rows for the "
            f"Triton kernels, got {group_size}: quantize it with other groups, or choose kernel_backend reference."
        )
    values = _taking_turns(weight.values.to(device), gated)
    values = functional.pad(values, (0, -num_inputs % block_k))
    if format == "int4":
        low, high = values.view(len(values), -1, 2, block_k // 2).unbind(2)
        values = (high << 4 | low & 15).view(len(values), -1)
    scales = _taking_turns(weight.scales.to(device), gated)
    return TritonLinear(
        numbers=values,
        scales=scales.T.contiguous() if group_size else scales[:, 0].contiguous(),
        bias=None if bias is None else _taking_turns(bias.to(device), gated),
        format=format,
        group_size=group_size,
        block_k=block_k,
        num_inputs=num_inputs,
        gated=gated,
        batch_invariant=True,
    )


def _taking_turns(rows: Tensor, gated: bool) -> Tensor:
    """A gated layer's gates and ups, which come one half after the other, in turns; another layer's as they are."""
    if not gated:
        return rows.contiguous()
    return rows.view(2, -1, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape)
