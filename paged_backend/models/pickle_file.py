"""A file of tensors that is a pickle, read as safetensors' files are: by name. Only where the operator asks for it."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paged_backend.errors import ModelLoadError

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True, slots=True)
class _Slice:
    """What is asked of a tensor before it is read, and a part of it."""

    tensor: Tensor

    def __getitem__(self, index: slice | tuple[slice, ...]) -> Tensor:
        return self.tensor[index]

    def get_dtype(self) -> str:
        return _NAMES.get(self.tensor.dtype, str(self.tensor.dtype))

    def get_shape(self) -> list[int]:
        return list(self.tensor.shape)


class PickleFile:
    """The tensors of one file, which stays memory-mapped while they are used.

    Raises:
        ModelLoadError: the file holds anything but tensors by name, or is broken.
    """

    def __init__(self, path: Path) -> None:
        try:
            # weights_only: an unpickler that knows tensors and plain values, and calls nothing else.
            content: object = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelLoadError(f"Cannot read {path} as tensors alone: {reason}") from error
        if not isinstance(content, dict) or not all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
        ):
            raise ModelLoadError(f"{path} does not hold tensors by name.")
        self._tensors: dict[str, Tensor] = content

    def __exit__(self, *_: Any) -> None:
        self._tensors = {}

    def keys(self) -> list[str]:
        """The tensors' names."""
        return list(self._tensors)

    def get_slice(self, name: str) -> _Slice:
        """A tensor's dtype and shape, and parts of it."""
        return _Slice(self._tensors[name])

    def get_tensor(self, name: str) -> Tensor:
        """The tensor itself."""
        return self._tensors[name]
