"""The folder of a tier on disk: its hash key, and one file of blocks for each way of computing them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from pathlib import Path

from paged_backend.executor.block_file import BlockFile, BlockFileError
from paged_backend.kv.prefix_index import HASH_KEY_BYTES

_KEY_NAME = "hash.key"
_SUFFIX = ".kvblocks"


def open_block_file(
    folder: Path, fingerprint: bytes, *, tokens_bytes: int, payload_bytes: int, max_bytes: int
) -> tuple[BlockFile, bytes]:
    """The folder's file for this fingerprint, and the folder's hash key. What is missing is made.

    Files of other fingerprints count, too: those that nobody has open are removed, least recently written first, until
    all of them fit max_bytes together.

    Raises:
        BlockFileError: the file is in use, or what is there cannot be.
        OSError: the folder cannot be made, read or written.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    hash_key = _hash_key(folder)
    path = folder / f"{fingerprint.hex()[:32]}{_SUFFIX}"
    used = _remove_stale(folder, path, max_bytes // 2)
    file = BlockFile(
        path,
        hash_key,
        fingerprint,
        tokens_bytes=tokens_bytes,
        payload_bytes=payload_bytes,
        max_bytes=max_bytes - used,
    )
    return file, hash_key


def _hash_key(folder: Path) -> bytes:
    """Read, or drawn once: two processes that draw at the same time end up with the same one."""
    path = folder / _KEY_NAME
    if not path.exists():
        draft = folder / f".{_KEY_NAME}.{os.getpid()}.{secrets.token_hex(4)}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(HASH_KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)  # fails where there is one by now, and never shows half of it
        finally:
            draft.unlink()
    key = path.read_bytes()
    if len(key) != HASH_KEY_BYTES:
        raise BlockFileError(f"{path} is not a key of {HASH_KEY_BYTES} bytes: remove it, and the blocks beside it.")
    return key


def _remove_stale(folder: Path, own: Path, max_bytes: int) -> int:
    """Removes files of other fingerprints until they fit; the bytes of those that stay."""
    others = [(path.stat(), path) for path in folder.glob(f"*{_SUFFIX}") if path != own]
    others.sort(key=lambda pair: pair[0].st_mtime_ns)
    total = sum(status.st_blocks * 512 for status, _ in others)
    for status, path in others:
        if total <= max_bytes:
            break
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            path.unlink()
            total -= status.st_blocks * 512
    return total
