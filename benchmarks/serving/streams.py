"""Measures streamed completions of a running server: tokens a second, first token, time between chunks.

    python -m benchmarks.serving.streams --base-url http://127.0.0.1:8080/predictions/paged-tiny/1.0/v1 \\
        --model paged-tiny --streams 16 --max-tokens 128

Every stream sends one completion of its own prompt with `ignore_eos`, all at once; the last line of the output
is one JSON object. Tokens are counted by the server (`stream_options.include_usage`), as a chunk may hold
several.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import openai

PROMPTS = (
    "Once upon a time, there was a",
    "One day, a small fox",
    "The robot looked at the sky and",
    "In a village near the sea lived",
)


@dataclass(frozen=True, slots=True)
class StreamTimes:
    """One stream, in seconds from its request.

    Attributes:
        chunks_s: when each chunk with text came.
        end_s: when the stream ended.
        num_tokens: what the server counted.
    """

    chunks_s: list[float]
    end_s: float
    num_tokens: int


async def run_stream(client: openai.AsyncOpenAI, model: str, prompt: str, max_tokens: int) -> StreamTimes:
    """Sends one completion and times its chunks."""
    start_s = time.perf_counter()
    chunks_s: list[float] = []
    num_tokens = 0
    stream = await client.completions.create(
        model=model,
        prompt=prompt,
        max_tokens=max_tokens,
        temperature=0.0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    async for chunk in stream:
        if chunk.usage is not None:
            num_tokens = chunk.usage.completion_tokens
        if chunk.choices:
            chunks_s.append(time.perf_counter() - start_s)
    return StreamTimes(chunks_s, time.perf_counter() - start_s, num_tokens)


async def measure(
    base_url: str, model: str, num_streams: int, max_tokens: int, api_key: str = "none"
) -> dict[str, float | int | str]:
    """Runs all streams at once, after one short request that warms the server up."""
    async with openai.AsyncOpenAI(base_url=base_url, api_key=api_key, timeout=600, max_retries=0) as client:
        await run_stream(client, model, PROMPTS[0], 8)
        start_s = time.perf_counter()
        # The number makes each prompt another one, so that no stream lives off another's prefix.
        prompts = [f"{index} {PROMPTS[index % len(PROMPTS)]}" for index in range(num_streams)]
        times = await asyncio.gather(*(run_stream(client, model, prompt, max_tokens) for prompt in prompts))
        wall_s = time.perf_counter() - start_s
    return summarize(times, wall_s, base_url, max_tokens)


def summarize(
    times: Sequence[StreamTimes], wall_s: float, base_url: str, max_tokens: int
) -> dict[str, float | int | str]:
    """One JSON-ready record; times in milliseconds, `itl` being the time between two chunks of a stream."""
    first_ms = [one.chunks_s[0] * 1000 for one in times if one.chunks_s]
    gaps_ms = [
        (later - earlier) * 1000
        for one in times
        for earlier, later in zip(one.chunks_s, one.chunks_s[1:], strict=False)
    ]
    num_tokens = sum(one.num_tokens for one in times)
    return {
        "base_url": base_url,
        "streams": len(times),
        "max_tokens": max_tokens,
        "tokens": num_tokens,
        "wall_s": round(wall_s, 3),
        "tokens_per_s": round(num_tokens / wall_s, 1),
        "ttft_ms_p50": percentile(first_ms, 50),
        "ttft_ms_p99": percentile(first_ms, 99),
        "itl_ms_p50": percentile(gaps_ms, 50),
        "itl_ms_p99": percentile(gaps_ms, 99),
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile; NaN of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    rank = max(1, math.ceil(percent / 100 * len(ordered)))
    return round(ordered[rank - 1], 2)


def main() -> None:
    """Reads the command line, measures, prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base-url", required=True, help="the OpenAI routes, ending in /v1")
    parser.add_argument("--model", required=True, help="a name that the server serves")
    parser.add_argument("--streams", type=int, default=16, help="requests at once (default 16)")
    parser.add_argument("--max-tokens", type=int, default=128, help="tokens of each (default 128)")
    parser.add_argument("--api-key", default="none", help="bearer token, where the server wants one")
    args = parser.parse_args()
    result = asyncio.run(measure(args.base_url, args.model, args.streams, args.max_tokens, api_key=args.api_key))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
