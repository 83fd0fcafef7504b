"""One file of fixed-size records, each a block of the KV cache and what finds it.

    header   4096 bytes: MAGIC, fingerprint [32], tokens bytes u64, payload bytes u64, checksum [16], zeros
    record   serial u64, digest [16], its group's suffix [2] (zeros for none), parent's digest [16], checksum of the
             payload [16], tokens, checksum of all this [16], payload, zeros up to a multiple of 512

Every checksum is BLAKE2b under the folder's key, so that a record is one that an engine with this key wrote whole: a
torn, changed or foreign one is ignored. A record is written in place, with no log and no flush: what a crash leaves
half written fails its checksum. Serials grow with each write, so that the order of use survives a restart, roughly.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import logging
import os
import struct
import threading
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from paged_backend.kv.prefix_index import DIGEST_BYTES, SUFFIX_BYTES, BlockKey

logger = logging.getLogger(__name__)

MAGIC = b"paged-kv-blocks\x01"
"""Its last byte is the format's version."""

_HEADER_BYTES = 4096
_ALIGNMENT_BYTES = 512
_SUM_BYTES = 16
_SIZES = struct.Struct("<QQ")
_META = struct.Struct(f"<Q{DIGEST_BYTES}s{SUFFIX_BYTES}s{DIGEST_BYTES}s{_SUM_BYTES}s")


class BlockFileError(Exception):
    """The file cannot be used: it is in use elsewhere, or not ours. The message says which."""


class _Entry(NamedTuple):
    record: int
    parent: bytes
    tokens: bytes


class BlockFile:
    """Blocks by their keys, on disk, at most so many: a full file overwrites what was used longest ago.

    One process at a time has it open: a lock, which ends with the process, keeps others out. Any thread may call; two
    writes must not overlap.

    Args:
        path: made if it is not there.
        hash_key: of the folder.
        fingerprint: 32 bytes that stand for all that makes one engine's blocks useless to another.
        tokens_bytes, payload_bytes: of a block.
        max_bytes: of the file.

    Raises:
        BlockFileError: another process has it open, or max_bytes holds no block.
        OSError: it cannot be made, read or written.
    """

    def __init__(
        self,
        path: Path,
        hash_key: bytes,
        fingerprint: bytes,
        *,
        tokens_bytes: int,
        payload_bytes: int,
        max_bytes: int,
    ) -> None:
        self.path = path
        self._hash_key = hash_key
        self._tokens_bytes = tokens_bytes
        self._payload_bytes = payload_bytes
        self._meta_bytes = _META.size + tokens_bytes + _SUM_BYTES
        self._record_bytes = -(-(self._meta_bytes + payload_bytes) // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        self.num_records = (max_bytes - _HEADER_BYTES) // self._record_bytes
        if self.num_records < 1:
            raise BlockFileError(f"kv_offloading_disk_size holds no block of {self._record_bytes} bytes: raise it.")
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()
        self._serial = 0
        self._free: list[int] = []  # the last is taken next
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._open(fingerprint)
        except BaseException:
            os.close(self._file)
            raise

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: BlockKey) -> bool:
        entry = self._entries.get(key.digest)
        return entry is not None and entry.parent == key.parent and entry.tokens == key.tokens

    def touch(self, key: BlockKey) -> bool:
        """Whether the block is there; from now on it counts as just used."""
        with self._lock:
            if key not in self:
                return False
            self._entries.move_to_end(key.digest)
            return True

    def read(self, key: BlockKey, payload: memoryview) -> bool:
        """Fills the buffer with a block's bytes; False if they are not there, or not what was written.

        Raises:
            OSError: the disk does not give them; the block is forgotten.
        """
        with self._lock:
            if key not in self:
                return False
            entry = self._entries[key.digest]
        start = self._offset(entry.record)
        try:
            meta = os.pread(self._file, self._meta_bytes, start)
            whole = os.preadv(self._file, [payload], start + self._meta_bytes) == self._payload_bytes
        except OSError:
            self._forget(key, entry)
            raise
        if whole and self._is_meta_of(meta, key) and hmac.compare_digest(self._sum(payload), _payload_sum(meta)):
            return True
        if self._forget(key, entry):  # else it has been overwritten meanwhile
            logger.warning("a block in %s is not what was written there: it is ignored", self.path)
        return False

    def write(self, key: BlockKey, payload: memoryview) -> None:
        """Keeps a block, in place of another if need be.

        Raises:
            OSError: it was not written; neither is what it was to replace there any more.
        """
        with self._lock:
            if not self._free:
                _, oldest = self._entries.popitem(last=False)
                self._free.append(oldest.record)
            record = self._free.pop()
            self._serial += 1
            serial = self._serial
        digest, suffix = key.digest[:DIGEST_BYTES], key.digest[DIGEST_BYTES:]
        meta = _META.pack(serial, digest, suffix, key.parent, self._sum(payload)) + key.tokens
        try:
            self._write_all([memoryview(meta + self._sum(meta)), payload], self._offset(record))
        except BaseException:
            with self._lock:
                self._free.append(record)
            raise
        with self._lock:
            replaced = self._entries.pop(key.digest, None)
            if replaced is not None:
                self._free.append(replaced.record)
            self._entries[key.digest] = _Entry(record, key.parent, key.tokens)

    def close(self) -> None:
        """Lets others use the file. Nothing may be called any more."""
        os.close(self._file)

    def _open(self, fingerprint: bytes) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockFileError(f"another process uses {self.path}.") from None
        header = MAGIC + fingerprint + _SIZES.pack(self._tokens_bytes, self._payload_bytes)
        header = (header + self._sum(header)).ljust(_HEADER_BYTES, b"\0")
        found = os.pread(self._file, _HEADER_BYTES, 0)
        if found != header:
            if found:
                logger.warning("%s was not written by this engine, or is torn: it begins anew", self.path)
            os.ftruncate(self._file, 0)
            self._write_all([memoryview(header)], 0)
        end = self._offset(self.num_records)
        if os.fstat(self._file).st_size > end:  # the bound was larger once
            os.ftruncate(self._file, end)
        self._scan()

    def _scan(self) -> None:
        """Reads what the records say of themselves; their payloads are checked when they are read."""
        size = os.fstat(self._file).st_size
        num_used = min(-(-max(size - _HEADER_BYTES, 0) // self._record_bytes), self.num_records)
        found: list[tuple[int, bytes, _Entry]] = []
        num_bad = 0
        self._free = list(range(self.num_records - 1, num_used - 1, -1))
        for record in range(num_used):
            meta = os.pread(self._file, self._meta_bytes, self._offset(record))
            if len(meta) == self._meta_bytes and hmac.compare_digest(self._sum(meta[:-_SUM_BYTES]), meta[-_SUM_BYTES:]):
                key = _key(meta)
                found.append((_serial(meta), key.digest, _Entry(record, key.parent, key.tokens)))
            else:
                num_bad += any(meta)
                self._free.append(record)
        for serial, digest, entry in sorted(found):
            older = self._entries.pop(digest, None)
            if older is not None:
                self._free.append(older.record)
            self._entries[digest] = entry
            self._serial = serial
        if num_bad:
            logger.warning("%d blocks in %s are torn or not ours: they are ignored", num_bad, self.path)

    def _is_meta_of(self, meta: bytes, key: BlockKey) -> bool:
        if len(meta) != self._meta_bytes or not hmac.compare_digest(self._sum(meta[:-_SUM_BYTES]), meta[-_SUM_BYTES:]):
            return False
        return _key(meta) == key

    def _forget(self, key: BlockKey, entry: _Entry) -> bool:
        """Drops an entry if it is still the one that was read."""
        with self._lock:
            if self._entries.get(key.digest) is not entry:
                return False
            del self._entries[key.digest]
            self._free.append(entry.record)
            return True

    def _write_all(self, parts: list[memoryview], offset: int) -> None:
        for part in parts:
            while part:
                count = os.pwrite(self._file, part, offset)
                part, offset = part[count:], offset + count

    def _offset(self, record: int) -> int:
        return _HEADER_BYTES + record * self._record_bytes

    def _sum(self, data: bytes | memoryview) -> bytes:
        return hashlib.blake2b(data, key=self._hash_key, digest_size=_SUM_BYTES).digest()


def _serial(meta: bytes) -> int:
    serial: int = _META.unpack_from(meta)[0]
    return serial


def _key(meta: bytes) -> BlockKey:
    _, digest, suffix, parent, _ = _META.unpack_from(meta)
    return BlockKey(digest + suffix if any(suffix) else digest, parent, meta[_META.size : -_SUM_BYTES])


def _payload_sum(meta: bytes) -> bytes:
    found: bytes = _META.unpack_from(meta)[4]
    return found
