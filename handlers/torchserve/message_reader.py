"""Reads TorchServe's messages in large pieces.

TorchServe's worker asks the system for every field by itself: some sixty calls for a request with the headers of an
ordinary client, for every request in every call of the handler, and each of them gives the interpreter's lock away and
queues for it again. That cost more than all the rest of a streamed chunk.
"""

from __future__ import annotations

import struct
from typing import Protocol

_PIECE_BYTES = 65_536
_INT = struct.Struct("!i")


class Connection(Protocol):
    """What is used of a socket."""

    def recv(self, size: int, /) -> bytes: ...


class MessageReader:
    """One connection's bytes, handed out field by field."""

    def __init__(self) -> None:
        self._data = b""
        self._start = 0

    def read(self, connection: Connection, length: int) -> bytes:
        """The next bytes, waiting for them.

        Raises:
            SystemExit: TorchServe has closed the connection, which is how it stops a worker.
        """
        end = self._start + length
        if end > len(self._data):
            self._fill(connection, length)
            end = length
        piece = self._data[self._start : end]
        self._start = end
        return piece

    def read_int(self, connection: Connection) -> int:
        """The next four bytes, as the protocol's number."""
        number: int = _INT.unpack(self.read(connection, _INT.size))[0]
        return number

    def _fill(self, connection: Connection, length: int) -> None:
        """Puts at least so many bytes at the buffer's beginning."""
        pieces = [self._data[self._start :]]
        missing = length - len(pieces[0])
        while missing > 0:
            piece = connection.recv(max(missing, _PIECE_BYTES))
            if not piece:
                raise SystemExit(0)
            pieces.append(piece)
            missing -= len(piece)
        self._data = b"".join(pieces)
        self._start = 0


def install() -> None:
    """Puts a reader in the place of TorchServe's own functions, for the worker's only connection.

    To be called between two messages, as `initialize` is. TorchServe gets no releases any more, and this package names
    the one that it was written for.
    """
    from ts.protocol import otf_message_handler as protocol

    reader = MessageReader()
    assert callable(protocol._retrieve_buffer) and callable(protocol._retrieve_int)
    protocol._retrieve_buffer = reader.read
    protocol._retrieve_int = reader.read_int
