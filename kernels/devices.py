"""Where a step is computed."""

from __future__ import annotations

import torch

from paged_backend.errors import ConfigError


def select_device(device: str = "auto", rank: int = 0, num_ranks: int = 1) -> torch.device:
    """The device of a name. Of several ranks each gets a GPU of its own, which becomes its process's current one.

    Args:
        device: "cpu"; "cuda", the current GPU; or "auto", which is that where there is one.

    Raises:
        ConfigError: there is no GPU that torch can use, or there are too few.
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
    if num_ranks > 1:
        if torch.cuda.device_count() < num_ranks:
            raise ConfigError(
                f"tensor_parallel_size {num_ranks} needs as many GPUs, and torch finds {torch.cuda.device_count()} "
                "(see nvidia-smi and CUDA_VISIBLE_DEVICES): lower it, or choose device cpu."
            )
        torch.cuda.set_device(rank)
    return torch.device("cuda", torch.cuda.current_device())
