"""Bytes that a step needs on the device, in one copy."""

from __future__ import annotations

from array import array
from typing import Any

import torch
from torch import Tensor

_ALIGNMENT = 16


class Upload:
    """Pieces of memory laid end to end, each from a multiple of 16 bytes on."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, *lines: array[Any]) -> slice:
        """Takes a piece of some lines in; returns its place in what `send` returns."""
        begin, piece = self._size, b"".join(line.tobytes() for line in lines)
        padding = -len(piece) % _ALIGNMENT
        self._pieces.append(piece + bytes(padding))
        self._size += len(piece) + padding
        return slice(begin, begin + len(piece))

    def send(self, device: torch.device) -> Tensor:
        """uint8: all of it on the device, or on its way there: nothing waits for it but what is ordered after it."""
        whole = torch.frombuffer(bytearray().join((*self._pieces, bytes(_ALIGNMENT))), dtype=torch.uint8)
        return to_device(whole, device)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, or on its way there, of memory that may be changed as soon as this returns."""
    return staged(tensor, device).to(device, non_blocking=True)


def staged(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy in memory that a GPU can fetch from by itself, if the device is one.

    It may be given up at once: torch hands it to nobody else before the copies that were ordered from it are done.
    """
    return torch.empty_like(tensor, pin_memory=device.type == "cuda").copy_(tensor)
