"""Tensors inside of larger memory: what is written beside them, or into them without leave, is found."""

from __future__ import annotations

import torch
from torch import Tensor

_MARGIN_BYTES = 1024
_PATTERN = 0xA5


class Guarded:
    """Places tensors, and looks at them again after a call."""

    def __init__(self) -> None:
        self._memories: list[tuple[Tensor, int, int]] = []

    def place(self, tensor: Tensor) -> Tensor:
        """A contiguous copy at a multiple of 64 bytes, with a pattern before and behind it."""
        size = tensor.nbytes
        memory = torch.full((size + 2 * _MARGIN_BYTES + 64,), _PATTERN, dtype=torch.uint8)
        begin = _MARGIN_BYTES + -memory.data_ptr() % 64
        self._memories.append((memory, begin, begin + size))
        return memory[begin : begin + size].view(tensor.dtype).view(tensor.shape).copy_(tensor)

    def check(self) -> None:
        """Nothing was written beside a tensor."""
        for memory, begin, end in self._memories:
            assert bool((memory[:begin] == _PATTERN).all()) and bool((memory[end:] == _PATTERN).all())


def bits(value: object) -> bytes | None:
    """A tensor's numbers, bit for bit, or None of what has none to read."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or not value.is_cpu:
        return None
    flat = torch.empty(value.numel(), dtype=value.dtype).copy_(value.detach().flatten())
    return bytes(flat.view(torch.uint8).numpy())
