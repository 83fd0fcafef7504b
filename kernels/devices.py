"""Where a step is computed."""

from __future__ import annotations

import torch

from paged_backend.errors import ConfigError


def select_device(device: str = "auto") -> torch.device:
    """The device of a name.

    Args:
        device: "cpu"; "cuda", the current GPU; or "auto", which is that where there is one.

    Raises:
        ConfigError: there is no GPU that torch can use.
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if torch.version.cuda is None:
        raise ConfigError(
            f"device cuda needs a build of torch with CUDA, and torch {torch.__version__} has none: install one, or "
            "choose device cpu."
        )
    if not torch.cuda.is_available():
        raise ConfigError(
            "device cuda needs an NVIDIA GPU, and torch finds none (see nvidia-smi and CUDA_VISIBLE_DEVICES): choose "
            "device cpu."
        )
    return torch.device("cuda", torch.cuda.current_device())
