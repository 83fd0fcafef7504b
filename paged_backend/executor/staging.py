"""Pinned memory on its way to a GPU: several tensors in one copy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

_NUM_BUFFERS = 4
"""One is written while the copies of two steps may wait to be made; one to spare."""

_UNIT = 16
"""Bytes, of which the places of tensors are multiples."""


class Staging:
    """A ring of pinned buffers, each of which is filled anew once its last copy has been made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers = [_Buffer() for _ in range(_NUM_BUFFERS)]
        self._next = 0

    def send(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Copies of contiguous host tensors, int32 or int64, on the device or on their way there, behind what is on
        the current stream; they may be changed at once."""
        sizes = [-(-tensor.nbytes // _UNIT) * _UNIT for tensor in tensors]
        *places, num_bytes = accumulate(sizes, initial=0)
        buffer = self._buffers[self._next]
        self._next = (self._next + 1) % _NUM_BUFFERS
        packed = buffer.filled(tensors, places, num_bytes).to(self._device, non_blocking=True)
        buffer.copied.record()
        words = {size: packed.view(dtype) for size, dtype in ((4, torch.int32), (8, torch.int64))}
        return [_view(words[tensor.itemsize], tensor, place) for tensor, place in zip(tensors, places, strict=True)]


class _Buffer:
    """Pinned memory, as large as was needed so far.

    Attributes:
        copied: the last copy out of it.
    """

    def __init__(self) -> None:
        self.copied: Any = torch.cuda.Event()
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._bytes = self._memory.numpy()

    def filled(self, tensors: Sequence[Tensor], places: Sequence[int], num_bytes: int) -> Tensor:
        """uint8 [num_bytes], with each tensor's bytes from its place on. Waits for the copy out of what was there."""
        if not self.copied.query():
            self.copied.synchronize()
        if len(self._bytes) < num_bytes:
            self._memory = torch.empty(1 << (num_bytes - 1).bit_length(), dtype=torch.uint8, pin_memory=True)
            self._bytes = self._memory.numpy()
        for tensor, place in zip(tensors, places, strict=True):
            self._bytes[place : place + tensor.nbytes] = tensor.numpy().reshape(-1).view(np.uint8)
        return self._memory[:num_bytes]


def _view(words: Tensor, like: Tensor, place: int) -> Tensor:
    """A part of memory as a contiguous tensor of that shape; place: its first byte."""
    assert words.dtype == like.dtype
    return words.as_strided(like.shape, like.stride(), place // like.itemsize)
