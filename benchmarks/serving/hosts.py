"""What the hosts leave of the bare engine's speed: one model on the engine, on BentoML and on TorchServe.

    python -m benchmarks.serving.hosts [--model smollm2-135m] [--precision bf16] [--streams 1 32] [--output FILE]

Each host is started as a user starts it (`paged-backend serve`), on free ports. All of them stay up, and every round
runs the engine and then each host with the same streams: what the machine does meanwhile meets all alike, and the
ratios are medians over rounds of host and engine in the same round. Server and client share the machine's cores. The
client of the ratios reads bare sockets; how much the `openai` package's client takes is measured in rounds of its own.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import ExitStack
from typing import Any

from benchmarks.engine.settings import add_engine_arguments, engine_args, model_folder, model_name
from benchmarks.report import finish, make_parser, rounded, say
from benchmarks.serving.clients import EngineStreams, OpenAIStreams, PlainStreams
from benchmarks.serving.servers import HOSTS, Server, running_host
from benchmarks.serving.streams import measure
from paged_backend import EngineConfig
from paged_backend.engine.client import EngineClient

Record = dict[str, Any]


def main() -> None:
    """Measures, prints a line for each run, and ends in JSON."""
    parser = make_parser(__doc__)
    add_engine_arguments(parser)
    parser.add_argument("--hosts", nargs="+", default=list(HOSTS), choices=HOSTS)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32], help="requests at once (default 1 and 32)")
    parser.add_argument("--max-tokens", type=int, default=128, help="tokens of each (default 128)")
    parser.add_argument("--rounds", type=int, default=5, help="of which medians are taken (default 5)")
    parser.add_argument("--openai-rounds", type=int, default=2, help="more rounds, with the openai client (default 2)")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.openai_rounds, args.max_tokens = 2, 1, 32
    folder, extra = model_folder(args.model), engine_args(args)
    with ExitStack() as stack:
        start_s = time.perf_counter()
        client = EngineClient.start(EngineConfig.from_args(extra, model=folder))
        stack.callback(client.shutdown)
        ready_s: Record = {"engine": time.perf_counter() - start_s}
        servers = []
        for host in args.hosts:
            servers.append(stack.enter_context(running_host(host, folder, extra)))
            ready_s[host] = servers[-1].ready_s
        results = [compare(client, servers, count, args) for count in args.streams]
    report = {
        "benchmark": "serving/hosts",
        "model": model_name(args.model),
        "engine_args": extra,
        "max_tokens": args.max_tokens,
        "ready_s": ready_s,
        "results": results,
    }
    finish(rounded(report), args.output)


def compare(client: EngineClient, servers: list[Server], num_streams: int, args: Any) -> Record:
    """All rounds of one number of streams."""
    result: Record = {"streams": num_streams}
    for kind, num_rounds in (("plain", args.rounds), ("openai", args.openai_rounds)):
        runs: dict[str, list[Record]] = {}
        for number in range(num_rounds):
            salt = f"{kind} {number}"
            runs.setdefault("engine", []).append(
                asyncio.run(measure(EngineStreams(client), num_streams, args.max_tokens, salt))
            )
            for server in servers:
                run = _run_host(server, kind, num_streams, args.max_tokens, salt)
                runs.setdefault(server.host, []).append(run)
        if runs:
            result[kind] = {name: _summary(name, records, runs["engine"]) for name, records in runs.items()}
            for name, record in result[kind].items():
                say(
                    f"{num_streams} streams, {kind} client, {name}: {record['tokens_per_s']:.0f} tokens/s, "
                    f"{record['of_engine']:.1%} of the engine's; first token {record['ttft_ms_p50']:.0f} ms, between "
                    f"chunks p50 {record['itl_ms_p50']:.1f} ms, p99 {record['itl_ms_p99']:.1f} ms"
                )
    return result


def _run_host(server: Server, kind: str, num_streams: int, max_tokens: int, salt: str) -> Record:
    async def run() -> Record:
        if kind == "plain":
            return await measure(PlainStreams(server.base_url, server.model), num_streams, max_tokens, salt)
        async with OpenAIStreams(server.base_url, server.model) as client:
            return await measure(client, num_streams, max_tokens, salt)

    return asyncio.run(run())


def _summary(name: str, records: list[Record], engine: list[Record]) -> Record:
    """Medians over rounds; `of_engine` is that of the rounds' own ratios."""
    ratios = [one["tokens_per_s"] / bare["tokens_per_s"] for one, bare in zip(records, engine, strict=True)]
    keys = ("tokens_per_s", "tokens_per_chunk", "ttft_ms_p50", "ttft_ms_p99", "itl_ms_p50", "itl_ms_p99")
    return {
        **{key: statistics.median(record[key] for record in records) for key in keys},
        "of_engine": statistics.median(ratios),
        "of_engine_rounds": [] if name == "engine" else ratios,
    }


if __name__ == "__main__":
    main()
