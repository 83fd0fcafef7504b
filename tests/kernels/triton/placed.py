"""Arguments of the kernels' tests on the device under test."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from paged_backend.kernels.cache_layout import LayerCache
from paged_backend.kernels.interface import StepInputs


def placed_cache(cache: LayerCache, device: torch.device) -> LayerCache:
    """A copy, of the same bytes; on the CPU aligned as caches are."""
    size = cache.keys.numel()
    buffer = torch.empty(2 * size + 64, dtype=torch.uint8, device=device)
    buffer = buffer[-buffer.data_ptr() % 64 :][: 2 * size].view(2, *cache.keys.shape)
    buffer[0].copy_(cache.keys)
    buffer[1].copy_(cache.values)
    return dataclasses.replace(cache, keys=buffer[0], values=buffer[1])


def placed_inputs(inputs: StepInputs, device: torch.device) -> StepInputs:
    """A copy."""
    tensors: dict[str, Any] = {
        name: value.clone().to(device)
        for name in StepInputs.__slots__
        if isinstance(value := getattr(inputs, name), Tensor)
    }
    return dataclasses.replace(inputs, **tensors)
