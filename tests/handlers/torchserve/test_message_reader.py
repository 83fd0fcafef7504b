"""TorchServe's messages, read in large pieces: the same fields come out, however the bytes arrive."""

from __future__ import annotations

import socket
import struct
import threading

import pytest

from paged_backend.handlers.torchserve import message_reader
from paged_backend.handlers.torchserve.message_reader import MessageReader


class Pieces:
    """A connection that gives what it holds, piece by piece, and counts who asked."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)
        self.num_calls = 0

    def recv(self, size: int, /) -> bytes:
        self.num_calls += 1
        piece = self.pieces.pop(0) if self.pieces else b""
        assert len(piece) <= size
        return piece


def test_many_fields_take_one_call() -> None:
    connection, reader = Pieces(struct.pack("!i", 3) + b"abc" + struct.pack("!i", -1)), MessageReader()
    assert reader.read(connection, reader.read_int(connection)) == b"abc"
    assert reader.read_int(connection) == -1
    assert connection.num_calls == 1


def test_fields_may_come_in_pieces() -> None:
    data = bytes(range(256)) * 10
    connection, reader = Pieces(*(data[i : i + 7] for i in range(0, len(data), 7))), MessageReader()
    sizes = [1, 0, 2, 100, 3, 1000]
    read = [reader.read(connection, size) for size in sizes]
    assert b"".join(read) == data[: sum(sizes)] and [len(piece) for piece in read] == sizes


def test_a_closed_connection_ends_the_worker() -> None:
    with pytest.raises(SystemExit):
        MessageReader().read(Pieces(b"ab"), 3)


def test_torchserve_reads_requests_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    protocol = pytest.importorskip("ts.protocol.otf_message_handler")
    for name in ("_retrieve_buffer", "_retrieve_int"):
        monkeypatch.setattr(protocol, name, getattr(protocol, name))  # put back at the end
    message_reader.install()

    def field(value: bytes) -> bytes:
        return struct.pack("!i", len(value)) + value

    end = struct.pack("!i", -1)
    parameter = field(b"body") + field(b"application/json") + field(b"{}" * 100_000)
    request = field(b"id-1") + field(b"name") + field(b"value") + end + parameter + end
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=theirs.sendall, args=(b"I" + request + end,))
        sender.start()
        command, (found,) = protocol.retrieve_msg(ours)
        sender.join()
    assert command == b"I" and found["requestId"].decode() == "id-1"
    assert found["headers"] == [{"name": b"name", "value": b"value"}]
    assert found["parameters"][0]["value"] == b"{}" * 100_000
