"""The file of blocks: what comes back, what is thrown out, what is ignored, and that nothing wrong is ever given."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from paged_backend.executor.block_file import BlockFile, BlockFileError
from paged_backend.executor.cache_folder import open_block_file
from paged_backend.kv.prefix_index import BlockKey, group_suffixes

KEY = b"k" * 32
FINGERPRINT = b"f" * 32
TOKENS_BYTES = 32
PAYLOAD_BYTES = 1000
MAX_BYTES = 4096 + 4 * 1536
"""Room for four blocks."""


def key(number: int) -> BlockKey:
    return BlockKey(bytes([number]) * 16, bytes([number + 100]) * 16, bytes([number]) * TOKENS_BYTES)


def payload(number: int) -> memoryview:
    return memoryview(bytes((number + i) % 256 for i in range(PAYLOAD_BYTES)))


@contextmanager
def opened(path: Path, fingerprint: bytes = FINGERPRINT, hash_key: bytes = KEY, **changes: int) -> Iterator[BlockFile]:
    sizes = {"tokens_bytes": TOKENS_BYTES, "payload_bytes": PAYLOAD_BYTES, "max_bytes": MAX_BYTES, **changes}
    file = BlockFile(path, hash_key, fingerprint, **sizes)
    try:
        yield file
    finally:
        file.close()


def held(file: BlockFile, numbers: range = range(20)) -> dict[int, bytes]:
    """All blocks that can be read, with their bytes."""
    found = {}
    for number in numbers:
        buffer = bytearray(PAYLOAD_BYTES)
        if file.read(key(number), memoryview(buffer)):
            found[number] = bytes(buffer)
    return found


def wanted(*numbers: int) -> dict[int, bytes]:
    return {number: bytes(payload(number)) for number in numbers}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "blocks"


def write(path: Path, *numbers: int) -> None:
    with opened(path) as file:
        for number in numbers:
            file.write(key(number), payload(number))


def record_start(number: int) -> int:
    return 4096 + number * 1536


def test_blocks_come_back_also_after_a_restart(path: Path) -> None:
    with opened(path) as file:
        file.write(key(1), payload(1))
        file.write(key(2), payload(2))
        assert held(file) == wanted(1, 2) and len(file) == 2
    with opened(path) as file:
        assert held(file) == wanted(1, 2)
        assert key(1) in file and key(3) not in file


def test_a_block_of_other_tokens_or_parent_is_not_there(path: Path) -> None:
    with opened(path) as file:
        file.write(key(1), payload(1))
        buffer = memoryview(bytearray(PAYLOAD_BYTES))
        for other in (key(1)._replace(tokens=bytes(TOKENS_BYTES)), key(1)._replace(parent=bytes(16))):
            assert other not in file and not file.touch(other) and not file.read(other, buffer)


def test_groups_of_layers_have_blocks_of_their_own(path: Path) -> None:
    """Also where a digest itself ends like a suffix, or like none."""
    digests = [b"d" * 16, b"d" * 14 + b"\1\0", bytes(16)]
    keys = [key(1)._replace(digest=digest + suffix) for digest in digests for suffix in group_suffixes(300)[::128]]
    with opened(path, max_bytes=4096 + 9 * 1536) as file:
        for number, one in enumerate(keys):
            file.write(one, payload(number))
    with opened(path, max_bytes=4096 + 9 * 1536) as file:
        assert len(file) == len(keys) == 9
        for number, one in enumerate(keys):
            buffer = bytearray(PAYLOAD_BYTES)
            assert file.read(one, memoryview(buffer)) and buffer == payload(number)


def test_a_full_file_gives_up_what_was_used_longest_ago(path: Path) -> None:
    with opened(path) as file:
        for number in range(4):
            file.write(key(number), payload(number))
        assert file.touch(key(0))
        file.write(key(4), payload(4))
        assert held(file) == wanted(0, 2, 3, 4)
    assert path.stat().st_size <= MAX_BYTES
    with opened(path) as file:  # what was written first goes first, now that nothing else is known
        file.write(key(5), payload(5))
        assert held(file) == wanted(2, 3, 4, 5)


def test_a_block_written_again_is_there_once(path: Path) -> None:
    write(path, 1, 1, 2)
    with opened(path) as file:
        assert held(file) == wanted(1, 2) and len(file) == 2


def test_a_smaller_bound_cuts_the_file(path: Path) -> None:
    write(path, 1, 2, 3)
    with opened(path, max_bytes=4096 + 2 * 1536) as file:
        assert held(file) == wanted(1, 2)
    assert path.stat().st_size <= 4096 + 2 * 1536
    with pytest.raises(BlockFileError, match="kv_offloading_disk_size"), opened(path, max_bytes=4096 + 1535):
        pass


@pytest.mark.parametrize("position", [0, 8, 30, 60, 120, 136, 700, 1100])
def test_a_changed_bit_makes_a_block_unusable(path: Path, position: int, caplog: pytest.LogCaptureFixture) -> None:
    write(path, 1, 2, 3)
    data = bytearray(path.read_bytes())
    data[record_start(1) + position] ^= 4
    path.write_bytes(data)
    with opened(path) as file:
        assert held(file) == wanted(1, 3)
        assert "ignored" in caplog.text
        file.write(key(2), payload(2))
        assert held(file) == wanted(1, 2, 3)


@pytest.mark.parametrize("size", [4096 + 10, 4096 + 1536 + 40, 4096 + 1536 + 140, 4096 + 2 * 1536 - 600])
def test_a_torn_file_loses_what_is_torn(path: Path, size: int, caplog: pytest.LogCaptureFixture) -> None:
    write(path, 1, 2)
    with path.open("r+b") as file:
        file.truncate(size)
    with opened(path) as opened_file:
        assert held(opened_file) == wanted(*range(1, 1 + (size - 4096) // 1536))
    assert "ignored" in caplog.text


def test_a_record_in_anothers_place_is_told_by_its_key(path: Path) -> None:
    """Records may be moved: each is known by what it says, which only the folder's key can have signed."""
    write(path, 1, 2)
    data = bytearray(path.read_bytes())
    data[record_start(0) : record_start(1)] = data[record_start(1) : record_start(2)]
    path.write_bytes(data)
    with opened(path) as file:
        assert held(file) == wanted(2)


@pytest.mark.parametrize(
    "changes",
    [
        {"fingerprint": b"g" * 32},
        {"hash_key": b"l" * 32},
        {"payload_bytes": PAYLOAD_BYTES - 8},
        {"tokens_bytes": TOKENS_BYTES * 2},
    ],
    ids=str,
)
def test_another_engines_file_begins_anew(
    path: Path, changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    write(path, 1, 2)
    with opened(path, **changes) as file:
        assert len(file) == 0
    assert "begins anew" in caplog.text


def test_a_foreign_file_begins_anew(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_bytes(b"something else" * 1000)
    with opened(path) as file:
        assert len(file) == 0
        file.write(key(1), payload(1))
        assert held(file) == wanted(1)
    assert "begins anew" in caplog.text


def test_one_process_at_a_time(path: Path) -> None:
    with opened(path), pytest.raises(BlockFileError, match="another process"), opened(path):
        pass
    with opened(path):
        pass


def test_a_full_disk_loses_only_what_it_was_to_replace(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path) as file:
        for number in range(4):
            file.write(key(number), payload(number))
        real = os.pwrite

        def half(descriptor: int, data: memoryview, offset: int) -> int:
            if offset % 1536 != record_start(0) % 1536:  # the payload
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(descriptor, data[:20], offset) if len(data) > 20 else real(descriptor, data, offset)

        monkeypatch.setattr(os, "pwrite", half)
        with pytest.raises(OSError, match="No space"):
            file.write(key(7), payload(7))
        assert held(file) == wanted(1, 2, 3)
        monkeypatch.undo()
        file.write(key(8), payload(8))
        assert held(file) == wanted(1, 2, 3, 8)


def test_a_failing_read_forgets_the_block(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path) as file:
        file.write(key(1), payload(1))

        def fail(*_: object) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(OSError, match="Input/output"):
            file.read(key(1), memoryview(bytearray(PAYLOAD_BYTES)))
        monkeypatch.undo()
        assert key(1) not in file and held(file) == {}


_WRITER = """
import itertools, sys
from pathlib import Path
from tests.executor.test_block_file import *
with opened(Path(sys.argv[1])) as file:
    for i in itertools.count():
        file.write(key(i % 9), payload(i % 9))
        if i == 50:
            print("going", flush=True)
"""


def test_a_killed_writer_leaves_whole_blocks_or_none(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None and writer.stdout.readline() == b"going\n"
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        with opened(path) as file:  # its lock went with it
            found = held(file)
            assert 3 <= len(found) <= 4
            assert found == wanted(*found)


# -- the folder


def open_in(folder: Path, fingerprint: bytes = FINGERPRINT, max_bytes: int = MAX_BYTES) -> tuple[BlockFile, bytes]:
    return open_block_file(
        folder, fingerprint, tokens_bytes=TOKENS_BYTES, payload_bytes=PAYLOAD_BYTES, max_bytes=max_bytes
    )


def test_a_folders_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    file, first = open_in(folder)
    file.close()
    file, second = open_in(folder)
    file.close()
    assert first == second and len(first) == 32 and first != bytes(32)
    assert (folder / "hash.key").stat().st_mode & 0o777 == 0o600
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert sorted(entry.name for entry in folder.iterdir()) == sorted(["hash.key", file.path.name])
    other, key_of_other = open_in(tmp_path / "other")
    other.close()
    assert key_of_other != first


def test_a_key_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hash.key").write_bytes(b"short")
    with pytest.raises(BlockFileError, match="not a key"):
        open_in(tmp_path)


def test_stale_files_make_room_but_not_those_in_use(tmp_path: Path) -> None:
    live, _ = open_in(tmp_path, b"a" * 32)
    stale, _ = open_in(tmp_path, b"b" * 32)
    for file in (live, stale):
        for number in range(4):
            file.write(key(number), payload(number))
    stale.close()
    os.utime(stale.path, ns=(1, 1))
    file, _ = open_in(tmp_path, b"c" * 32, max_bytes=10 * MAX_BYTES)
    file.close()
    assert stale.path.exists(), "there is room for all"
    file, _ = open_in(tmp_path, b"c" * 32, max_bytes=3 * MAX_BYTES)
    file.close()
    assert live.path.exists() and not stale.path.exists()
    live.close()
