"""Threads around the file of blocks: nothing raises, nothing waits, and failures are counted."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from paged_backend.executor import disk_tier
from paged_backend.executor.block_file import BlockFile
from paged_backend.executor.disk_tier import DiskTier
from tests.executor.test_block_file import (
    FINGERPRINT,
    KEY,
    MAX_BYTES,
    PAYLOAD_BYTES,
    TOKENS_BYTES,
    key,
    payload,
    wanted,
)

WAIT_S = 60.0


def new_file(path: Path) -> BlockFile:
    return BlockFile(
        path, KEY, FINGERPRINT, tokens_bytes=TOKENS_BYTES, payload_bytes=PAYLOAD_BYTES, max_bytes=MAX_BYTES
    )


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[DiskTier]:
    tier = DiskTier(new_file(tmp_path / "blocks"), KEY, PAYLOAD_BYTES)
    yield tier
    tier.close(WAIT_S)


def save(tier: DiskTier, number: int) -> None:
    tier.save(key(number), lambda: payload(number), timeout_s=WAIT_S)


def read(tier: DiskTier, *numbers: int) -> dict[int, bytes]:
    buffers = [bytearray(PAYLOAD_BYTES) for _ in numbers]
    reading = tier.read([key(number) for number in numbers], [memoryview(buffer) for buffer in buffers])
    reading.wait(WAIT_S)
    assert reading.done
    return {number: bytes(buffer) for number, buffer in list(zip(numbers, buffers, strict=True))[: reading.num_read]}


def reopened(tier: DiskTier, path: Path) -> DiskTier:
    tier.close(WAIT_S)
    return DiskTier(new_file(path / "blocks"), KEY, PAYLOAD_BYTES)


def test_what_was_saved_is_read_up_to_the_first_that_is_missing(tmp_path: Path) -> None:
    tier = DiskTier(new_file(tmp_path / "blocks"), KEY, PAYLOAD_BYTES)
    for number in (1, 2, 4):
        save(tier, number)
    tier = reopened(tier, tmp_path)
    assert key(1) in tier and key(3) not in tier
    assert read(tier, 1, 2) == wanted(1, 2)
    assert read(tier, 1, 2, 3, 4) == wanted(1, 2)
    assert read(tier) == {}
    stats = tier.stats()
    assert (stats.num_blocks, stats.max_blocks, stats.read_bytes) == (3, 4, 4 * PAYLOAD_BYTES)
    tier.close(WAIT_S)


def test_what_is_there_is_not_copied_again(tmp_path: Path) -> None:
    tier = DiskTier(new_file(tmp_path / "blocks"), KEY, PAYLOAD_BYTES)
    save(tier, 1)
    tier = reopened(tier, tmp_path)
    tier.save(key(1), lambda: pytest.fail("copied for nothing"))
    tier.close(WAIT_S)


def test_a_slow_disk_drops_what_does_not_fit_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_tier, "_QUEUE_BYTES", 2 * PAYLOAD_BYTES)
    file = new_file(tmp_path / "blocks")
    gate, inside, real = threading.Event(), threading.Event(), file.write

    def slow(*args: object) -> None:
        inside.set()
        assert gate.wait(WAIT_S)
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(file, "write", slow)
    tier = DiskTier(file, KEY, PAYLOAD_BYTES)
    tier.save(key(0), lambda: payload(0))
    assert inside.wait(WAIT_S)
    for number in (1, 2):
        tier.save(key(number), lambda number=number: payload(number))  # type: ignore[misc]
    tier.save(key(3), lambda: pytest.fail("copied for nothing"))
    assert tier.stats().num_dropped == 1
    gate.set()
    tier = reopened(tier, tmp_path)
    assert read(tier, 0, 1, 2) == wanted(0, 1, 2)
    tier.close(WAIT_S)


def test_a_full_disk_is_given_up_after_some_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tier = DiskTier(new_file(tmp_path / "blocks"), KEY, PAYLOAD_BYTES)

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fail)
        for number in range(12):
            save(tier, number)
        tier.close(WAIT_S)
    stats = tier.stats()
    assert stats.num_failures == 8 and stats.written_bytes == 0
    assert "No space left" in caplog.text and "no more are tried" in caplog.text
    tier = DiskTier(new_file(tmp_path / "blocks"), KEY, PAYLOAD_BYTES)
    save(tier, 1)
    tier = reopened(tier, tmp_path)
    assert read(tier, 1) == wanted(1)
    tier.close(WAIT_S)


def test_a_failing_read_is_a_miss(
    tier: DiskTier, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2):
        save(tier, number)
    while key(2) not in tier:  # the writer's turn
        threading.Event().wait(0.001)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", fail)
        assert read(tier, 1, 2) == {}
    assert "could not be read" in caplog.text and tier.stats().num_failures == 1
    assert read(tier, 2) == wanted(2) and read(tier, 1) == {}
