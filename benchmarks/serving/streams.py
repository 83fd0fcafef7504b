"""Measures streamed completions of a running server: tokens a second, first token, time between chunks.

    python -m benchmarks.serving.streams --base-url http://127.0.0.1:8080/predictions/paged-tiny/1.0/v1 \\
        --model paged-tiny --streams 16 --max-tokens 128

Every stream sends one completion of its own prompt with `ignore_eos`, all at once; the last line of the output
is one JSON object. Tokens are counted by the server (`stream_options.include_usage`), as a chunk may hold several.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.report import finish, make_parser, percentile, rounded
from benchmarks.serving.clients import OpenAIStreams, PlainStreams, StreamClient, StreamTimes

PROMPTS = (
    "Once upon a time, there was a",
    "One day, a small fox",
    "The robot looked at the sky and",
    "In a village near the sea lived",
)


def prompts(num_streams: int, salt: object = "") -> list[str]:
    """Short prompts, each another one, so that no stream lives off another's prefix."""
    return [f"{salt} {index} {PROMPTS[index % len(PROMPTS)]}" for index in range(num_streams)]


async def measure(client: StreamClient, num_streams: int, max_tokens: int, salt: object = "") -> dict[str, Any]:
    """Runs all streams at once, after one short request that warms the server up.

    Args:
        salt: stands in every prompt, for runs that are not to find each other's prefixes.
    """
    await client.run(PROMPTS[0], 4)
    start_s = time.perf_counter()
    times = await asyncio.gather(*(client.run(prompt, max_tokens) for prompt in prompts(num_streams, salt)))
    wall_s = time.perf_counter() - start_s
    num_tokens = sum(one.num_tokens for one in times)
    assert num_tokens == num_streams * max_tokens, f"{num_tokens} tokens of {num_streams} x {max_tokens}"
    return summarize(times, wall_s)


def summarize(times: Sequence[StreamTimes], wall_s: float) -> dict[str, Any]:
    """One JSON-ready record; times in milliseconds, `itl` being the time between two chunks of a stream."""
    first_ms = [one.chunks_s[0] * 1000 for one in times if one.chunks_s]
    gaps_ms = [
        (later - earlier) * 1000
        for one in times
        for earlier, later in zip(one.chunks_s, one.chunks_s[1:], strict=False)
    ]
    num_tokens = sum(one.num_tokens for one in times)
    record = {
        "streams": len(times),
        "tokens": num_tokens,
        "tokens_per_chunk": num_tokens / max(1, sum(len(one.chunks_s) for one in times)),
        "wall_s": wall_s,
        "tokens_per_s": num_tokens / wall_s,
        "ttft_ms_p50": percentile(first_ms, 50),
        "ttft_ms_p99": percentile(first_ms, 99),
        "itl_ms_p50": percentile(gaps_ms, 50),
        "itl_ms_p99": percentile(gaps_ms, 99),
    }
    return dict(rounded(record))


async def _run(base_url: str, model: str, api_key: str, plain: bool, num_streams: int, max_tokens: int) -> Any:
    if plain:
        return await measure(PlainStreams(base_url, model, api_key), num_streams, max_tokens)
    async with OpenAIStreams(base_url, model, api_key) as client:
        return await measure(client, num_streams, max_tokens)


def main() -> None:
    """Reads the command line, measures, prints JSON."""
    parser = make_parser(__doc__)
    parser.add_argument("--base-url", required=True, help="the OpenAI routes, ending in /v1")
    parser.add_argument("--model", required=True, help="a name that the server serves")
    parser.add_argument("--streams", type=int, default=16, help="requests at once (default 16)")
    parser.add_argument("--max-tokens", type=int, default=128, help="tokens of each (default 128)")
    parser.add_argument("--api-key", default="none", help="bearer token, where the server wants one")
    parser.add_argument("--plain", action="store_true", help="bare sockets in place of the openai client")
    args = parser.parse_args()
    num_streams, max_tokens = (2, 16) if args.quick else (args.streams, args.max_tokens)
    result = asyncio.run(_run(args.base_url, args.model, args.api_key, args.plain, num_streams, max_tokens))
    finish({"benchmark": "serving/streams", "max_tokens": max_tokens, **result}, args.output)


if __name__ == "__main__":
    main()
