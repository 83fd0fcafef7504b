"""Which devices the kernels can run on."""

from __future__ import annotations

import torch
import triton

from paged_backend.errors import ConfigError

MIN_CAPABILITY = (8, 0)
"""Ampere: bfloat16 in the matrix unit, copies into shared memory that nobody waits for."""


def check_target(device: torch.device) -> str:
    """Says what the kernels will run on.

    Raises:
        ConfigError: not on this device.
    """
    if device.type == "cpu":
        if not triton.knobs.runtime.interpret:
            raise ConfigError(
                "kernel_backend triton serves the device cuda; on the device cpu it runs in Triton's interpreter only, "
                "which is for tests (TRITON_INTERPRET=1). Choose kernel_backend auto, cpu or reference."
            )
        return "interpreted on the CPU"
    if device.type != "cuda" or torch.version.cuda is None:
        raise ConfigError(f"kernel_backend triton serves NVIDIA GPUs, got the device {device}: choose reference.")
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        raise ConfigError(
            f"kernel_backend triton needs a card of compute capability {_dotted(MIN_CAPABILITY)} (Ampere) or newer, "
            f"and {name} has {_dotted(capability)}: choose device cpu, or kernel_backend reference for plain torch."
        )
    return f"{name}, compute capability {_dotted(capability)}"


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
