"""The tensors of a model folder: safetensors files, one or many. Pickles can run code: refused unless asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from paged_backend.errors import ModelLoadError
from paged_backend.models.folder import read_json
from paged_backend.models.pickle_file import PickleFile

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MAX_NAMED = 5
"""How many tensors an error names before it only counts."""


class Checkpoint:
    """Reads tensors by name and remembers which were wanted, so that nothing is missed on either side.

    Use it as a context manager: the files are held open (memory-mapped) meanwhile.
    """

    def __init__(self, folder: Path, prefix: str, load_format: str = "auto") -> None:
        """Opens the files.

        Args:
            folder: holds model.safetensors, or several files and model.safetensors.index.json.
            prefix: a first part of names that a checkpoint may leave out.
            load_format: "pt" reads pytorch_model.bin, or several and its index, in their place.

        Raises:
            ModelLoadError: there are no such files, or one is missing or broken.
        """
        self._folder = folder
        self._prefix = prefix
        self._files: list[Any] = []
        self._holders: dict[str, Any] = {}
        self._read: set[str] = set()
        self._missing: list[str] = []
        for path in weight_files(folder, load_format):
            self._open(path)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.__exit__(None, None, None)

    def __contains__(self, name: str) -> bool:
        return self._stored_name(name) in self._holders

    def take(
        self,
        name: str,
        shape: Sequence[int],
        dtype: torch.dtype | None,
        *,
        ranges: Sequence[range] | None = None,
        dim: int = 0,
    ) -> Tensor:
        """A tensor, cast. A missing one is remembered for `finish`, and stands as zeros until then.

        Args:
            name: as the family calls it.
            shape: what it must have.
            dtype: what it is rounded to; None keeps the stored one.
            ranges: parts of it that are read, one after the other; None reads all.
            dim: 0 or 1, the dimension that these divide.

        Raises:
            ModelLoadError: its shape or dtype is not the expected one.
        """
        stored = self._stored_name(name)
        if stored not in self._holders:
            self._missing.append(name)
            return _read_parts(torch.zeros(*shape, dtype=dtype), ranges, dim)
        self._read.add(stored)
        piece = self._holders[stored].get_slice(stored)
        if piece.get_dtype() not in _DTYPES:
            raise ModelLoadError(
                f"{stored} in {self._folder} is {piece.get_dtype()}; supported are "
                f"{', '.join(_DTYPES)}: use a float checkpoint."
            )
        if list(piece.get_shape()) != list(shape):
            raise ModelLoadError(
                f"{stored} in {self._folder} has shape {list(piece.get_shape())}, but config.json asks for "
                f"{list(shape)}: the two do not belong together."
            )
        whole = ranges is None or sum(map(len, ranges)) == shape[dim]
        tensor: Tensor = self._holders[stored].get_tensor(stored) if whole else _read_parts(piece, ranges, dim)
        # A copy: the file is memory-mapped, and may be replaced while the model is in use.
        return tensor.to(dtype, copy=True).contiguous()

    def finish(self, ignored: Sequence[str]) -> None:
        """Checks that every wanted tensor was there and every stored one was wanted.

        Args:
            ignored: regular expressions for whole names that may be left over.

        Raises:
            ModelLoadError: some are missing or left over; the first few are named.
        """
        left = [name for name in self._holders if name not in self._read]
        left = [name for name in left if not any(re.fullmatch(pattern, name) for pattern in ignored)]
        if self._missing:
            raise ModelLoadError(f"{self._folder} lacks weights that config.json asks for: {_some(self._missing)}.")
        if left:
            raise ModelLoadError(
                f"{self._folder} holds weights that config.json has no place for: "
                f"{_some(sorted(left))}. They would change the model's output, so they are not skipped."
            )

    def _open(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            file: Any = PickleFile(path) if path.suffix == ".bin" else safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise ModelLoadError(f"Cannot read {path}: {error}. Fetch the model again.") from error
        self._files.append(file)
        self._holders.update(dict.fromkeys(file.keys(), file))

    def _stored_name(self, name: str) -> str:
        if name in self._holders or not name.startswith(self._prefix):
            return name
        bare = name[len(self._prefix) :]
        return bare if bare in self._holders else name


def _read_parts(piece: Any, ranges: Sequence[range] | None, dim: int) -> Tensor:
    """Parts of what can be sliced, side by side."""
    if ranges is None:
        whole: Tensor = piece[:]
        return whole
    before = (slice(None),) * dim
    return torch.cat([piece[(*before, slice(part.start, part.stop))] for part in ranges], dim)


def weight_files(folder: Path, load_format: str = "auto") -> list[Path]:
    """The files that hold a folder's weights: pickles only with "pt".

    Raises:
        ModelLoadError: there are none that may be used.
    """
    single = folder / ("pytorch_model.bin" if load_format == "pt" else "model.safetensors")
    index = folder / f"{single.name}.index.json"
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelLoadError(f"{index} has no weight_map.")
        names = sorted(set(weight_map.values()))
        if any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise ModelLoadError(f"{index} names files outside the model's folder.")
        if any(Path(name).suffix != single.suffix for name in names):
            raise ModelLoadError(f"{index} names files that are no {single.suffix} files.")
        absent = [name for name in names if not (folder / name).is_file()]
        if absent:
            raise ModelLoadError(f"{folder} lacks weight files that its index names: {_some(absent)}.")
        return [folder / name for name in names]
    if single.is_file():
        return [single]
    if load_format != "pt" and any(folder.glob("pytorch_model*.bin")):
        raise ModelLoadError(
            f"{folder} has its weights only as a pickle (pytorch_model.bin), which can run code when it is "
            "read and is refused. Convert it once, where you trust it: "
            "transformers' AutoModelForCausalLM.from_pretrained(...).save_pretrained(...) writes safetensors. Or give "
            "load_format: pt, which reads tensors alone from it."
        )
    raise ModelLoadError(f"{folder} has no {single.name} and no {index.name}.")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
