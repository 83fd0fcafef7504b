"""Tells one checkpoint from another without reading all of it."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

from paged_backend.models.checkpoint import weight_files

_SAMPLE_BYTES = 4096
_SAMPLES_PER_FILE = 256


def checkpoint_fingerprint(folder: Path, load_format: str = "auto") -> bytes:
    """32 bytes that change with any file of the checkpoint.

    Of config.json, everything counts; of each file with weights its name, size, time of change, header (names, dtypes
    and shapes) and samples from all over it. So a file that was changed and given its old time back is told apart if
    a sample is hit, and a training step changes nearly all weights.

    Raises:
        ModelLoadError: there are no weights.
        OSError: a file cannot be read.
    """
    state = hashlib.blake2b(digest_size=32)
    _add(state, (folder / "config.json").read_bytes())
    for path in weight_files(folder, load_format):
        _add(state, path.name.encode())
        with path.open("rb") as file:
            size = file.seek(0, 2)
            _add(state, struct.pack("<qq", size, path.stat().st_mtime_ns))
            if path.suffix == ".safetensors":
                file.seek(0)
                (header_bytes,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
                _add(state, file.read(min(header_bytes, size)))
            for i in range(_SAMPLES_PER_FILE):
                file.seek(size * i // _SAMPLES_PER_FILE)
                _add(state, file.read(_SAMPLE_BYTES))
    return state.digest()


def _add(state: Any, data: bytes) -> None:
    state.update(struct.pack("<Q", len(data)))
    state.update(data)
