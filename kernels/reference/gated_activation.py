"""Reference of `Kernels.gated_activation`."""

from __future__ import annotations

from torch import Tensor

from paged_backend.kernels.reference.activation import ACTIVATIONS


def gated_activation(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """See `Kernels.gated_activation`."""
    return (ACTIVATIONS[activation](gate.float()) * up.float()).to(gate.dtype)
