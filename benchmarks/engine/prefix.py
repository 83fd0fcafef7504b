"""What a shared system prompt saves: hit rate and time to the first token, by where the prefix comes from.

    python -m benchmarks.engine.prefix [--model smollm2-135m] [--precision bf16] [--requests 8] [--quick]

Each request is a system prompt of 512 random tokens and a question of 32, and comes when the one before it has ended.
`cold`: nobody has asked with this system prompt. `warm`: another question, the prefix is in the pool. `host memory`: it
was overwritten in the pool meanwhile. `restarted`: the engine was closed and started again on the same folder, and the
prefix is on disk (in the system's file cache, most likely). The hit rate is over all prompt tokens; its limit is
512 / 544 = 94 %.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from benchmarks.engine.settings import add_engine_arguments, engine_args, model_folder, model_name
from benchmarks.report import finish, make_parser, percentile, rounded, say
from benchmarks.workloads import FIRST_PLAIN_ID
from paged_backend.config import EngineConfig
from paged_backend.engine.client import EngineClient
from paged_backend.sampling_params import SamplingParams

SYSTEM_TOKENS = 512
QUESTION_TOKENS = 32
MAX_MODEL_LEN = 640
_VOCAB_SIZE = 1024
"""Ids below this are in every model's vocabulary."""


class Asker:
    """Sends one request at a time, and keeps what each kind of them took."""

    def __init__(self) -> None:
        self.first_token_s: defaultdict[str, list[float]] = defaultdict(list)
        self.num_cached: defaultdict[str, int] = defaultdict(int)
        self._num_asked = 0

    def ask(self, client: EngineClient, kind: str, system: int) -> None:
        """A question of its own after the system prompt of that number."""
        self._num_asked += 1
        prompt = [*_tokens(f"system {system}", SYSTEM_TOKENS), *_tokens(f"question {self._num_asked}", QUESTION_TOKENS)]
        start_s = time.perf_counter()
        stream = client.submit(prompt, SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True))
        first = next(stream)
        self.first_token_s[kind].append(time.perf_counter() - start_s)
        self.num_cached[kind] += first.num_cached_tokens
        for _ in stream:
            pass

    def result(self, kind: str) -> dict[str, Any]:
        """Of all requests of a kind; times in seconds."""
        times_s = self.first_token_s[kind]
        return {
            "requests": len(times_s),
            "hit_rate": self.num_cached[kind] / (len(times_s) * (SYSTEM_TOKENS + QUESTION_TOKENS)),
            "first_token_s": statistics.median(times_s),
            "first_token_p90_s": percentile(times_s, 90),
        }


def measure(new_client: Callable[..., EngineClient], num_requests: int) -> dict[str, Any]:
    """All kinds, each with as many system prompts as requests."""
    asker = Asker()
    with tempfile.TemporaryDirectory() as folder:
        client = new_client(kv_offloading_dir=folder)
        asker.ask(client, "first", -1)
        for kind in ("cold", "warm"):
            for system in range(num_requests):
                asker.ask(client, kind, system)
        start_s = time.perf_counter()
        client.shutdown()
        close_s = time.perf_counter() - start_s
        client = new_client(kv_offloading_dir=folder)
        asker.ask(client, "first", -2)
        for system in range(num_requests):
            asker.ask(client, "restarted", system)
        disk = client.stats().transfer
        client.shutdown()
    client = new_client(num_gpu_blocks_override=MAX_MODEL_LEN // 16, kv_offloading_size=4.0)
    for kind in ("first", "host memory"):
        for system in range(num_requests):
            asker.ask(client, kind, system)
    client.shutdown()
    assert disk is not None and disk.disk is not None
    kinds = ("cold", "warm", "host memory", "restarted")
    return {
        "kinds": {kind: asker.result(kind) for kind in kinds},
        "close_s": close_s,
        "disk_read_bytes": disk.disk.read_bytes,
    }


def _tokens(name: str, count: int) -> list[int]:
    rng = random.Random(name)
    return [rng.randrange(FIRST_PLAIN_ID, _VOCAB_SIZE) for _ in range(count)]


def main() -> None:
    """Measures and reports."""
    parser = make_parser(__doc__)
    add_engine_arguments(parser)
    parser.set_defaults(model="smollm2-135m", precision="bf16")
    parser.add_argument("--requests", type=int, default=8, help="of each kind (default 8)")
    args = parser.parse_args()
    num_requests = 2 if args.quick else args.requests
    folder = model_folder(args.model)

    def new_client(**arguments: Any) -> EngineClient:
        settings = {"max_model_len": MAX_MODEL_LEN, "max_num_seqs": num_requests + 4, **engine_args(args), **arguments}
        return EngineClient.start(EngineConfig.from_args(settings, model=folder))

    result = measure(new_client, num_requests)
    for kind, one in result["kinds"].items():
        say(f"{kind}: hit rate {one['hit_rate']:.0%}, first token after {one['first_token_s'] * 1000:.1f} ms")
    report = {
        "benchmark": "engine/prefix",
        "model": model_name(args.model),
        "precision": args.precision,
        "system_tokens": SYSTEM_TOKENS,
        "question_tokens": QUESTION_TOKENS,
        **result,
    }
    finish(rounded(report), args.output)


if __name__ == "__main__":
    main()
