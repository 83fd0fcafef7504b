"""Requests that arrive by chance: latencies and goodput of both hosts at several rates.

    python -m benchmarks.serving.poisson [--model smollm2-135m] [--precision int8] [--load 0.3 0.6 0.9]
        [--requests 120] [--output FILE]

Arrivals are a Poisson process, the same for every host: first the bare engine's capacity is measured (requests a second
with all of a workload at once), and the rates are fractions of it. Lengths are the lognormal workload's, halved for the
bundled model; prompts are random tokens, greedy, end of sequence ignored. Each host is started as a user starts it,
and asked by the `openai` client, streaming, from this process: server and client share the machine's cores.

TTFT is from sending a request to its first chunk, ITL between two chunks of a request, e2e to its end. Goodput counts
the requests whose TTFT and whose mean ITL are within limits, for each second from the first arrival to the last end.
Every rate gets the same number of requests, enough for a p99 to mean something; a request ends after --timeout.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.engine.settings import add_engine_arguments, engine_args, model_folder, model_name
from benchmarks.report import finish, make_parser, percentile, rounded, say
from benchmarks.serving.clients import EngineStreams, OpenAIStreams, StreamClient, StreamTimes
from benchmarks.serving.servers import HOSTS, Server, running_host
from benchmarks.workloads import FIRST_PLAIN_ID, WARM_UP_SEED, load_workload
from paged_backend import EngineConfig
from paged_backend.config import BUNDLED_MODEL
from paged_backend.engine.client import EngineClient

Record = dict[str, Any]

_CAPACITY_SEED: Final = 10_007  # the rates have 0, 1, 2 ...
LENGTH_SCALE: Final = {BUNDLED_MODEL: 0.5}


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request to come.

    Attributes:
        at_s: seconds from the first one's clock.
    """

    at_s: float
    prompt: list[int]
    num_output_tokens: int


def draw_arrivals(
    rate: float, lengths: Sequence[tuple[int, int]], vocab_size: int, *, count: int, seed: int
) -> list[Arrival]:
    """The first `count` of a Poisson process of so many requests a second.

    Args:
        lengths: (prompt, output) tokens; drawn in random order, all of them before one comes again.
    """
    draw = random.Random(seed)
    arrivals: list[Arrival] = []
    at_s = 0.0
    order: list[tuple[int, int]] = []
    while len(arrivals) < count:
        order = order or draw.sample(list(lengths), len(lengths))
        num_prompt, num_output = order.pop()
        prompt = [draw.randrange(FIRST_PLAIN_ID, vocab_size) for _ in range(num_prompt)]
        arrivals.append(Arrival(at_s, prompt, num_output))
        at_s += draw.expovariate(rate)
    return arrivals


async def run_arrivals(
    client: StreamClient, arrivals: Sequence[Arrival], timeout_s: float
) -> tuple[list[StreamTimes | None], float]:
    """Sends every request at its time; returns their times (None for one that failed), and how long all took."""
    start_s = time.perf_counter()

    async def one(arrival: Arrival) -> StreamTimes | None:
        await asyncio.sleep(max(0.0, start_s + arrival.at_s - time.perf_counter()))
        try:
            times = await asyncio.wait_for(client.run(arrival.prompt, arrival.num_output_tokens), timeout_s)
        except Exception as error:
            say(f"  a request failed: {type(error).__name__} {error}")
            return None
        return times if times.num_tokens == arrival.num_output_tokens else None

    times = await asyncio.gather(*map(one, arrivals))
    return times, time.perf_counter() - start_s


def summarize(times: Sequence[StreamTimes | None], wall_s: float, ttft_limit_ms: float, itl_limit_ms: float) -> Record:
    """Percentiles over requests (TTFT, e2e) and over chunks (ITL), in milliseconds."""
    done = [one for one in times if one is not None and one.chunks_s]
    ttft_ms = [one.chunks_s[0] * 1e3 for one in done]
    e2e_ms = [one.end_s * 1e3 for one in done]
    itl_ms = [(b - a) * 1e3 for one in done for a, b in zip(one.chunks_s, one.chunks_s[1:], strict=False)]
    mean_itl_ms = [(one.chunks_s[-1] - one.chunks_s[0]) * 1e3 / max(1, one.num_tokens - 1) for one in done]
    num_good = sum(
        first <= ttft_limit_ms and mean <= itl_limit_ms for first, mean in zip(ttft_ms, mean_itl_ms, strict=True)
    )
    return {
        "requests": len(times),
        "failed": len(times) - len(done),
        "seconds": wall_s,
        "requests_per_s": len(done) / wall_s,
        "tokens_per_s": sum(one.num_tokens for one in done) / wall_s,
        "goodput_per_s": num_good / wall_s,
        "good_share": num_good / len(times),
        **{
            name: {f"p{percent}": percentile(values, percent) for percent in (50, 95, 99)}
            for name, values in (("ttft_ms", ttft_ms), ("itl_ms", itl_ms), ("e2e_ms", e2e_ms))
        },
    }


def measure_capacity(folder: str, extra: Record, scale: float, quick: bool) -> tuple[float, int]:
    """(requests a second of the bare engine with the whole workload at once, the model's vocabulary)."""
    client = EngineClient.start(EngineConfig.from_args(extra, model=folder))
    try:
        vocab_size = client.vocab_size
        drawn = draw_arrivals(1.0, _lengths(scale), vocab_size, count=8 if quick else 48, seed=_CAPACITY_SEED)
        arrivals = [Arrival(0.0, one.prompt, one.num_output_tokens) for one in drawn]
        asyncio.run(run_arrivals(EngineStreams(client), _warm_up(vocab_size), 600))
        times, wall_s = asyncio.run(run_arrivals(EngineStreams(client), arrivals, 600))
    finally:
        client.shutdown()
    assert all(times), "the bare engine serves every request"
    return len(times) / wall_s, vocab_size


def measure_host(server: Server, rates: dict[float, float], vocab_size: int, scale: float, args: Any) -> list[Record]:
    """One host at every rate."""

    async def run(arrivals: Sequence[Arrival]) -> tuple[list[StreamTimes | None], float]:
        async with OpenAIStreams(server.base_url, server.model) as client:
            await client.run(_warm_up(vocab_size)[0].prompt, 4)
            return await run_arrivals(client, arrivals, args.timeout)

    results = []
    for number, (load, rate) in enumerate(rates.items()):
        arrivals = draw_arrivals(rate, _lengths(scale), vocab_size, count=args.requests, seed=number)
        times, wall_s = asyncio.run(run(arrivals))
        record = summarize(times, wall_s, args.ttft_limit_ms, args.itl_limit_ms)
        results.append({"host": server.host, "load": load, "rate_per_s": rate, **record})
        ttft, itl = (_between(record[name]) for name in ("ttft_ms", "itl_ms"))
        say(
            f"{server.host}, {rate:.2f} requests/s ({load:.0%} of capacity): TTFT {ttft}; ITL {itl}; goodput "
            f"{record['goodput_per_s']:.2f}/s, {record['failed']} of {record['requests']} failed"
        )
    return results


def main() -> None:
    """Measures, prints a line for each rate, and ends in JSON."""
    parser = make_parser(__doc__)
    add_engine_arguments(parser)
    parser.add_argument("--hosts", nargs="+", default=list(HOSTS), choices=HOSTS)
    parser.add_argument("--load", type=float, nargs="+", default=[0.3, 0.6, 0.9], help="fractions of capacity")
    parser.add_argument("--requests", type=int, default=120, help="for each rate (default 120)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for a request (default 120)")
    parser.add_argument("--ttft-limit-ms", type=float, default=1000.0, help="for goodput (default 1000)")
    parser.add_argument("--itl-limit-ms", type=float, default=100.0, help="for goodput, a request's mean (default 100)")
    args: argparse.Namespace = parser.parse_args()
    if args.quick:
        args.requests, args.load = 8, [0.5]
    folder, extra, scale = model_folder(args.model), engine_args(args), LENGTH_SCALE.get(args.model, 1.0)
    capacity, vocab_size = measure_capacity(folder, extra, scale, args.quick)
    say(f"the bare engine's capacity: {capacity:.2f} requests/s")
    rates = {load: load * capacity for load in args.load}
    results: list[Record] = []
    for host in args.hosts:
        with running_host(host, folder, extra) as server:
            results += measure_host(server, rates, vocab_size, scale, args)
    report = {
        "benchmark": "serving/poisson",
        "model": model_name(args.model),
        "engine_args": extra,
        "length_scale": scale,
        "capacity_requests_per_s": capacity,
        "ttft_limit_ms": args.ttft_limit_ms,
        "itl_limit_ms": args.itl_limit_ms,
        "requests_per_rate": args.requests,
        "results": results,
    }
    finish(rounded(report), args.output)


def _lengths(scale: float) -> list[tuple[int, int]]:
    """(prompt, output) tokens of the lognormal workload's requests, scaled."""
    requests = load_workload("lognormal-48", FIRST_PLAIN_ID + 1).requests
    return [
        (max(1, round(len(one.prompt_token_ids) * scale)), max(2, round(one.num_output_tokens * scale)))
        for one in requests
    ]


def _warm_up(vocab_size: int) -> list[Arrival]:
    """Two short requests whose prompts no other request has."""
    return draw_arrivals(1e6, [(16, 4)], vocab_size, count=2, seed=WARM_UP_SEED)


def _between(percentiles: dict[str, float | None]) -> str:
    p50, p99 = percentiles["p50"], percentiles["p99"]
    return "-" if p50 is None or p99 is None else f"p50 {p50:.0f}, p99 {p99:.0f} ms"


if __name__ == "__main__":
    main()
