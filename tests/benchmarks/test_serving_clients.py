"""The serving benchmarks' own parts: arrivals, and the client that reads bare sockets."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.serving.clients import PlainStreams, StreamTimes
from benchmarks.serving.poisson import draw_arrivals, summarize

FRAMES = [
    b'data: {"id":"a","choices":[{"index":0,"text":"H"}]}\n\n',
    b'data: {"id":"a","choices":[{"index":0,"text":"i"}]}\n\ndata: {"id":"a","choices":[{"index":0,"text":"!"}]}\n\n',
    b'data: {"id":"a","choices":[],"usage":{"completion_tokens":3}}\n\n',
    b"data: [DONE]\n\n",
]


def reply(frames: list[bytes], status: str = "200 OK") -> bytes:
    """A chunked HTTP response."""
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(frame), frame) for frame in frames)
    return f"HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + chunks + b"0\r\n\r\n"


def ask(answer: bytes, piece_bytes: int) -> StreamTimes:
    """What the client makes of an answer that comes in pieces."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        for start in range(0, len(answer), piece_bytes):
            writer.write(answer[start : start + piece_bytes])
            await writer.drain()
            await asyncio.sleep(0)
        await reader.read()
        writer.close()

    async def run() -> StreamTimes:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await asyncio.wait_for(PlainStreams(f"http://127.0.0.1:{port}/v1", "m").run([1, 2], 3), 20)

    return asyncio.run(run())


@pytest.mark.parametrize("piece_bytes", [1, 7, 100_000])
def test_plain_streams_see_every_chunk(piece_bytes: int) -> None:
    times = ask(reply(FRAMES), piece_bytes)
    assert times.num_tokens == 3
    assert len(times.chunks_s) == 3
    assert times.chunks_s == sorted(times.chunks_s) and times.chunks_s[-1] <= times.end_s


@pytest.mark.parametrize("piece_bytes", [1, 7, 100_000])
def test_plain_streams_end_with_a_body_of_known_length(piece_bytes: int) -> None:
    body = b"".join(FRAMES)
    times = ask(
        b"HTTP/1.1 200 \r\ncontent-length: %d\r\nconnection: keep-alive\r\n\r\n%s" % (len(body), body), piece_bytes
    )
    assert times.num_tokens == 3 and len(times.chunks_s) == 3


@pytest.mark.parametrize(
    "answer",
    [
        reply([b'{"error": {}}'], "400 Bad Request"),
        reply([FRAMES[0], b'data: {"error":{"message":"x"}}\n\n']),
    ],
)
def test_plain_streams_take_no_error_for_a_stream(answer: bytes) -> None:
    with pytest.raises(RuntimeError):
        ask(answer, 100)


def test_arrivals_are_as_many_as_asked_for_and_repeat() -> None:
    lengths = [(5, 2), (3, 4)]
    arrivals = draw_arrivals(10.0, lengths, 100, count=15, seed=1)
    assert arrivals == draw_arrivals(10.0, lengths, 100, count=15, seed=1)
    assert len(arrivals) == 15 and arrivals[0].at_s == 0
    assert {(len(one.prompt), one.num_output_tokens) for one in arrivals} == set(lengths)


def test_goodput_counts_what_is_within_limits() -> None:
    good = StreamTimes([0.1, 0.2, 0.3], 0.3, 3)
    late = StreamTimes([2.0, 2.1], 2.1, 2)
    slow = StreamTimes([0.1, 1.1], 1.1, 2)
    record = summarize([good, late, slow, None], 10.0, ttft_limit_ms=1000, itl_limit_ms=200)
    assert record["goodput_per_s"] == 0.1 and record["failed"] == 1 and record["good_share"] == 0.25
    assert record["ttft_ms"]["p50"] == pytest.approx(100)
    assert record["itl_ms"]["p99"] == pytest.approx(1000)
