"""The activations that `Kernels.linear` knows, in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional


def _gelu(x: Tensor) -> Tensor:
    return functional.gelu(x)


def _gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _relu_squared(x: Tensor) -> Tensor:
    return functional.relu(x).square()


ACTIVATIONS: MappingProxyType[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "gelu": _gelu,
        # Three names in checkpoints for one formula, the tanh form of arXiv:1606.08415.
        "gelu_fast": _gelu_tanh,
        "gelu_new": _gelu_tanh,
        "gelu_pytorch_tanh": _gelu_tanh,
        "quick_gelu": _quick_gelu,
        "relu": functional.relu,
        "relu2": _relu_squared,
        "sigmoid": torch.sigmoid,
        "silu": functional.silu,
        "swish": functional.silu,
        "tanh": torch.tanh,
    }
)
"""Activation functions by their names in Hugging Face configurations; each takes float32."""
