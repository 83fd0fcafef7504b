"""Clients that mean no good, or are broken, on both live hosts: what they took is given back, and others are served.

Seen by counters: requests that run, and in the long tests the memory of the process with the engine.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from tests.serving.bento_host import BentoHost
from tests.serving.conftest import MAX_BODY_BYTES, Host

LONG: dict[str, Any] = {"prompt": "Once", "n": 8, "max_tokens": 400, "temperature": 0.9, "seed": 1, "ignore_eos": True}
TIMEOUT_S = 60.0
MIB = 2**20


class Client:
    """One raw connection to a host's /v1/completions."""

    def __init__(self, host: Host, *, receive_bytes: int | None = None) -> None:
        self._path = httpx.URL(f"{host.url}/v1/completions").raw_path.decode()
        self.socket = socket.socket()
        if receive_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(TIMEOUT_S)
        self.socket.connect(("127.0.0.1", host.port))

    def send_head(self, *headers: str) -> None:
        lines = [f"POST {self._path} HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())

    def send(self, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_head(f"Content-Length: {len(content)}")
        self.socket.sendall(content)

    def status(self) -> int:
        """Of the response; 0 where the connection is cut in its place."""
        with contextlib.suppress(ConnectionError):
            head = self.socket.recv(64)
            if head:
                return int(head.split()[1])
        return 0

    def close(self, *, rudely: bool = False) -> None:
        if rudely:  # a reset, and no word of farewell
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


@contextlib.contextmanager
def clients(host: Host, count: int, **options: Any) -> Iterator[list[Client]]:
    """So many connections, closed at the end."""
    opened: list[Client] = []
    try:
        for _ in range(count):
            opened.append(Client(host, **options))  # noqa: PERF401  those that came so far are closed, too
        yield opened
    finally:
        for client in opened:
            client.close()


def check_well(host: Host) -> None:
    """Nothing runs for those who left, and a stranger is served."""
    host.wait_idle(timeout_s=30)
    reply = httpx.post(f"{host.url}/v1/completions", json={"prompt": "Once", "max_tokens": 3}, timeout=TIMEOUT_S)
    assert reply.status_code == 200, reply.text
    assert httpx.get(f"{host.url}/health", timeout=TIMEOUT_S).status_code == 200


def drop(client: Client, kind: int) -> None:
    """Leaves at one of six places."""
    if kind == 1:
        client.socket.sendall(b"POST /v1/comp")
    elif kind == 2:
        client.send_head("Content-Length: 1000")
    elif kind == 3:
        client.send_head("Content-Length: 1000")
        client.socket.sendall(b'{"prompt": "x')
    elif kind == 4:
        client.send({**LONG, "stream": True})
    elif kind == 5:
        client.send(LONG)
    client.close(rudely=kind % 2 == 0)


class TestBodies:
    def test_one_that_says_that_it_is_too_large_is_refused_before_it_comes(self, each_host: Host) -> None:
        with clients(each_host, 1) as (client,):
            client.send_head(f"Content-Length: {10**11}")
            assert client.status() == 413
        check_well(each_host)

    def test_one_that_does_not_say_so_is_refused_while_it_comes(self, each_host: Host) -> None:
        chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
        num_sent = 0
        with clients(each_host, 1) as (client,):
            client.send_head("Transfer-Encoding: chunked")
            with contextlib.suppress(ConnectionError, TimeoutError):
                while num_sent < 100 * MAX_BODY_BYTES and not select.select([client.socket], [], [], 0)[0]:
                    client.socket.sendall(chunk)
                    num_sent += len(chunk)
            assert client.status() in (413, 0)
        # The connection's buffers may hold some.
        assert num_sent < 20 * MAX_BODY_BYTES
        check_well(each_host)


def test_dropped_connections_leave_nothing_running(each_host: Host) -> None:
    for number in range(24):
        drop(Client(each_host), number % 6)
    check_well(each_host)


def test_a_client_that_does_not_read_holds_no_place_in_the_engine(each_host: Host) -> None:
    ended = each_host.metric("vllm:request_success_total")
    with clients(each_host, 1, receive_bytes=4096) as (reader,):
        reader.send({**LONG, "stream": True, "logprobs": 20})  # more than the system's buffers take
        each_host.wait_busy(timeout_s=30)
        # It is still there and reads nothing, and its request goes to its end.
        each_host.wait_idle(timeout_s=60)
        assert each_host.metric("vllm:request_success_total", finished_reason="length") > 0
        assert each_host.metric("vllm:request_success_total") == ended + 1
    check_well(each_host)


def worker_of(host: Host) -> psutil.Process:
    """The process with the engine."""
    if isinstance(host, BentoHost):
        return host.worker()
    pid = host.worker_pid()
    assert pid is not None
    return psutil.Process(pid)


def memory_of(host: Host) -> int:
    """Bytes that the process with the engine has."""
    rss: int = worker_of(host).memory_info().rss
    return rss


@pytest.mark.slow
class TestMany:
    """The same by the hundreds, with a look at memory: the first round makes what is made once, as the pool's pages."""

    def rounds(self, host: Host, play: Any) -> None:
        play()
        check_well(host)
        before, num_files = memory_of(host), worker_of(host).num_fds()
        for _ in range(2):
            play()
        check_well(host)
        assert memory_of(host) < before + 48 * MIB
        assert worker_of(host).num_fds() <= num_files + 8

    def test_a_thousand_connects_and_drops(self, each_host: Host) -> None:
        def play() -> None:
            for number in range(500):
                drop(Client(each_host), number % 6)

        self.rounds(each_host, play)

    def test_slow_readers(self, each_host: Host) -> None:
        def play() -> None:
            with clients(each_host, 8, receive_bytes=4096) as readers:
                for reader in readers:
                    reader.send({**LONG, "stream": True, "logprobs": 20})
                each_host.wait_busy(timeout_s=30)
                each_host.wait_idle(timeout_s=200)

        self.rounds(each_host, play)

    def test_half_open_connections_beside_others(self, each_host: Host) -> None:
        def play() -> None:
            with clients(each_host, 300) as silent:
                for number, client in enumerate(silent):
                    if number % 3 == 1:
                        client.send_head("Content-Length: 500000")
                    elif number % 3 == 2:
                        client.send_head("Content-Length: 500000")
                        client.socket.sendall(b"x" * 100_000)
                check_well(each_host)

        self.rounds(each_host, play)

    def test_bodies_that_are_too_large_or_too_deep(self, each_host: Host) -> None:
        def play() -> None:
            for content in (b"[" * 900_000, b'{"a":' * 150_000, b'{"prompt": "' + b"x" * MAX_BODY_BYTES + b'"}'):
                for _ in range(20):
                    reply = httpx.post(
                        f"{each_host.url}/v1/completions",
                        content=content,
                        headers={"Content-Type": "application/json"},
                        timeout=TIMEOUT_S,
                    )
                    assert reply.status_code in (400, 413)

        self.rounds(each_host, play)
