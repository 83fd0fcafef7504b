"""Measures one model on the bare engine, on BentoML and on TorchServe, with 1 and with 16 streams.

    python -m benchmarks.serving.hosts [--model FOLDER] [--streams 1 16] [--max-tokens 128] [--output FILE]

Each host is started as a user starts it (`paged-backend serve`), on free ports, one after the other. The last
line of the output is one JSON object. Server and client share the machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.serving.streams import PROMPTS, StreamTimes, measure, summarize
from paged_backend import EngineConfig, SamplingParams
from paged_backend.engine.client import EngineClient

Record = dict[str, float | int | str]

STOP_TIMEOUT_S = 60.0


async def run_engine_stream(client: EngineClient, prompt: str, max_tokens: int) -> StreamTimes:
    """What `streams.run_stream` does, without any server."""
    start_s = time.perf_counter()
    chunks_s: list[float] = []
    num_tokens = 0
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    async for delta in client.submit(prompt, params):
        num_tokens += sum(len(output.token_ids) for output in delta.outputs)
        chunks_s.append(time.perf_counter() - start_s)
    return StreamTimes(chunks_s, time.perf_counter() - start_s, num_tokens)


async def measure_engine(client: EngineClient, num_streams: int, max_tokens: int) -> Record:
    """What `streams.measure` does, without any server."""
    await run_engine_stream(client, PROMPTS[0], 8)
    prompts = [f"{index} {PROMPTS[index % len(PROMPTS)]}" for index in range(num_streams)]
    start_s = time.perf_counter()
    times = await asyncio.gather(*(run_engine_stream(client, prompt, max_tokens) for prompt in prompts))
    return summarize(times, time.perf_counter() - start_s, "engine", max_tokens)


@contextmanager
def running_host(host: str, model: str) -> Iterator[tuple[str, str, float]]:
    """A host with the model; yields its base URL, the model's name there, and how long its start took (s)."""
    port, management_port, metrics_port = _free_ports(3)
    command = [
        *(sys.executable, "-m", "paged_backend.handlers.cli", "serve", "--host", host),
        *("--model", model, "--set", "name=bench", "--port", str(port)),
        *("--set", f"torchserve.management_port={management_port}"),
        *("--set", f"torchserve.metrics_port={metrics_port}"),
    ]
    start_s = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("Ready:"):
                break
        else:
            raise SystemExit(f"{host} did not start: its messages above say why.")
        path = "/predictions/bench/1.0/v1" if host == "torchserve" else "/v1"
        yield f"http://127.0.0.1:{port}{path}", "bench", time.perf_counter() - start_s
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=STOP_TIMEOUT_S)


def main() -> None:
    """Measures, prints a line for each run, and ends in JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="paged-tiny", help="folder or name (default paged-tiny)")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16], help="requests at once")
    parser.add_argument("--max-tokens", type=int, default=128, help="tokens of each (default 128)")
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    args = parser.parse_args()
    report: dict[str, dict[str, object]] = {}
    start_s = time.perf_counter()
    client = EngineClient.start(EngineConfig.from_args(model=args.model))
    ready_s = time.perf_counter() - start_s
    runs = [asyncio.run(measure_engine(client, count, args.max_tokens)) for count in args.streams]
    client.shutdown()
    report["engine"] = _entry("engine", ready_s, runs)
    for host in ("bentoml", "torchserve"):
        with running_host(host, args.model) as (base_url, name, ready_s):
            runs = [asyncio.run(measure(base_url, name, count, args.max_tokens)) for count in args.streams]
        report[host] = _entry(host, ready_s, runs)
    text = json.dumps({"benchmark": "serving/hosts", "model": args.model, "max_tokens": args.max_tokens, **report})
    if args.output is not None:
        args.output.write_text(text + "\n", encoding="utf-8")
    print(text)


def _entry(host: str, ready_s: float, runs: list[Record]) -> dict[str, object]:
    for run in runs:
        print(
            f"{host}: {run['streams']} streams, {run['tokens_per_s']} tokens/s; first token "
            f"{run['ttft_ms_p50']} ms, between chunks p50 {run['itl_ms_p50']} ms, p99 {run['itl_ms_p99']} ms"
            f"; ready in {ready_s:.1f} s",
            flush=True,
        )
    return {"ready_s": round(ready_s, 2), "runs": runs}


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


if __name__ == "__main__":
    main()
