"""llama.cpp's own server: all requests are posted at once, and wait for one of its slots.

Settings: `slots`, `batch` and `ubatch` (tokens), `flash_attention` ("on", "off", "auto"), `kv_cache` (its type, such as
"f16"), `arguments` (more of the server's). The context is large enough for every slot to hold the longest request.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.peers.contract import Job, Outcome, main
from benchmarks.workloads import BenchRequest

START_TIMEOUT_S = 120.0
REQUEST_TIMEOUT_S = 3600.0


def run(job: Job) -> Outcome:
    """Starts the server, posts the workload, stops the server."""
    assert job.executable is not None
    settings = job.settings
    slots = settings["slots"]
    port = _free_port()
    tokens_per_slot = -(-(job.max_model_len + 8) // 256) * 256
    command = [
        *(job.executable, "--model", job.model, "--host", "127.0.0.1", "--port", str(port), "--no-ui", "--offline"),
        *("--parallel", str(slots), "--ctx-size", str(slots * tokens_per_slot), "--no-context-shift"),
        *("--threads", str(job.num_threads), "--threads-batch", str(job.num_threads)),
        *("--batch-size", str(settings.get("batch", 2048)), "--ubatch-size", str(settings.get("ubatch", 512))),
        *("--flash-attn", settings.get("flash_attention", "auto")),
        *("--cache-type-k", settings.get("kv_cache", "f16"), "--cache-type-v", settings.get("kv_cache", "f16")),
        *("--cache-ram", "0", "--ctx-checkpoints", "0", "--log-verbosity", "2"),
        *settings.get("arguments", []),
    ]
    server = subprocess.Popen(command)
    try:
        _wait_until_ready(server, port)
        _generate(port, job.warm_up())
        start_cpu_s = _cpu_s(server.pid)
        start_s = time.perf_counter()
        output_token_ids = _generate(port, job.requests)
        seconds = time.perf_counter() - start_s
        cpu_s = _cpu_s(server.pid) - start_cpu_s
    finally:
        server.terminate()
        server.wait(30)
    return Outcome(seconds, output_token_ids, cpu_s, {"llama.cpp": _version(job.executable)}, {"command": command[1:]})


def _generate(port: int, requests: list[BenchRequest]) -> list[list[int]]:
    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(lambda request: _complete(port, request), requests))


def _complete(port: int, request: BenchRequest) -> list[int]:
    """One request over a connection of its own; greedy by keeping the one best token."""
    answer = _post(
        port,
        "/completion",
        {
            "prompt": request.prompt_token_ids,
            "n_predict": request.num_output_tokens,
            "ignore_eos": True,
            "samplers": ["top_k"],
            "top_k": 1,
            "cache_prompt": False,
            "return_tokens": True,
            "stream": False,
        },
    )
    token_ids: list[int] = answer["tokens"]
    return token_ids


def _post(port: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_TIMEOUT_S)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise RuntimeError(f"llama-server answered {response.status}: {content[:500]!r}")
    answer: dict[str, Any] = json.loads(content)
    return answer


def _wait_until_ready(server: subprocess.Popen[bytes], port: int) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if server.poll() is not None:
            raise RuntimeError(f"llama-server ended with {server.returncode}; its messages above say why")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    raise TimeoutError("llama-server did not become ready")


def _cpu_s(pid: int) -> float:
    """Processor seconds of a process so far, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _version(executable: str) -> str:
    told = subprocess.run([executable, "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"version: (.*)", told.stdout + told.stderr)
    return found.group(1) if found else "unknown"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


if __name__ == "__main__":
    main(run)
