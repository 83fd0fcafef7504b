"""What a step costs beside the model: the whole engine over an executor that computes nothing.

    python -m benchmarks.engine.overhead [--seqs 1 16 64 256] [--steps 300] [--output FILE]

The engine's own thread runs as ever (plan, a step's inputs, commit, what each sequence gained, snapshot, streams), its
parts wrapped by clocks. Sequences decode a token a step; their prompts differ in length, so that a sixteenth of them
fills a block in each step. In the model's place every stream is read: that is where deltas and text are made, by other
threads as a rule; so `reading` is told apart, with text, without, and with stop strings, whose text the engine has to
make. Times are microseconds of the thread's own CPU per step, so that other load disturbs them least: the median over
steps, and the best. Other load still slows a thread down, by half and more: `yardstick` is a plain Python loop timed in
the same steps, to compare runs by.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np

from benchmarks.report import finish, make_parser, say
from paged_backend.config import EngineConfig, SchedulerConfig
from paged_backend.engine.client import EngineClient
from paged_backend.engine.stream import RequestStream
from paged_backend.engine.tokenizer import Tokenizer
from paged_backend.executor.batch import BatchInputs
from paged_backend.kv.layer_group import LayerGroup
from paged_backend.kv.manager import KVCacheManager
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import StepPlan, StepResult
from paged_backend.scheduler.scheduler import Scheduler

TOKENIZER = Path(__file__).resolve().parents[2] / "model_store" / "paged-tiny"
BLOCK_SIZE = 16
MIN_PROMPT_TOKENS = 64
NEVER = "\u2603 never said \u2603"
"""A stop string: with one the engine's thread has to make the text."""


KINDS: dict[str, dict[str, Any]] = {"text": {}, "no text": {"detokenize": False}, "stop strings": {"stop": NEVER}}
"""What requests ask for; the rest is as plain as can be."""


def main() -> None:
    """Measures and reports."""
    parser = make_parser(__doc__)
    parser.add_argument("--seqs", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    tokenizer = Tokenizer.load(TOKENIZER)
    steps = []
    for num_seqs in args.seqs:
        for kind in KINDS:
            row = measure_steps(num_seqs, 40 if args.quick else args.steps, tokenizer, kind)
            steps.append(row)
            engine, shares = row["engine"], ", ".join(f"{k} {v['median_us']:.1f}" for k, v in row["parts"].items())
            say(f"{num_seqs} x {kind}: {engine['median_us']:.0f} us, best {engine['best_us']:.0f} ({shares})")
    admission = [measure_admission(num_tokens) for num_tokens in (128, 1024, 8192)]
    finish(
        {"benchmark": "engine/overhead", "block_size": BLOCK_SIZE, "steps": steps, "admission": admission}, args.output
    )


class EmptyExecutor:
    """Makes a step's inputs, computes nothing, and gives random tokens at once."""

    max_model_len = 8192
    block_size = BLOCK_SIZE
    layer_groups = (LayerGroup(0, BLOCK_SIZE, max_model_len),)
    eos_token_ids = frozenset({2})
    transfer = None
    async_scheduling = False
    default_sampling_params: Mapping[str, float] = MappingProxyType({})

    def __init__(self, num_seqs: int, num_tokens: int, vocab_size: int, clocks: Clocks) -> None:
        self.num_blocks = num_seqs * -(-num_tokens // BLOCK_SIZE)
        self.vocab_size = vocab_size
        self.gate = threading.Event()
        self.streams: list[RequestStream] = []
        self._read = clocks.timed("reading", self._read_streams)
        self._inputs = BatchInputs(BLOCK_SIZE)
        self._draw = np.random.default_rng(0)
        self._make_inputs = clocks.timed("inputs", self._inputs.build)
        self._make_result = clocks.timed("result", self._result)
        self._measure = clocks.timed("yardstick", yardstick)
        self._clocks = clocks
        self._num_seqs = num_seqs

    def run(self, plan: StepPlan) -> StepResult:
        """Waits in the first step until all requests are there."""
        self.gate.wait()
        self._clocks.is_steady = plan.num_tokens == len(plan.sequences) == self._num_seqs
        if self._clocks.is_steady:
            self._read()
            self._measure()
        self._make_inputs(plan)
        drawn = self._draw.integers(16, self.vocab_size, len(plan.sequences))
        return cast(StepResult, self._make_result(plan, drawn))

    def _result(self, plan: StepPlan, drawn: np.ndarray[Any, Any]) -> StepResult:
        tasks = [line.sampling for line in plan.sequences if line.sampling is not None]
        return StepResult(drawn[: len(tasks)].tolist())

    def _read_streams(self) -> None:
        for stream in self.streams:
            next(stream)

    def close(self) -> None:
        """Nothing to close."""


def yardstick() -> int:
    """1000 turns of an empty loop."""
    total = 0
    for i in range(1000):
        total += i
    return total


class Clocks:
    """CPU time of the calling thread by part, summed up per step."""

    def __init__(self) -> None:
        self.is_steady = False
        self.steps: list[dict[str, float]] = []
        self._now: dict[str, float] = defaultdict(float)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time added to a part of the step."""

        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time_ns()
            result = function(*args, **kwargs)
            self._now[name] += (time.thread_time_ns() - start) / 1000
            return result

        return run

    def wrap(self, owner: Any, method: str, name: str) -> None:
        """Replaces an object's method by its timed one."""
        setattr(owner, method, self.timed(name, getattr(owner, method)))

    def after(self, owner: Any, method: str, action: Callable[[], None]) -> None:
        """Adds an action to an object's method."""
        function = getattr(owner, method)

        def run(*args: Any) -> None:
            function(*args)
            action()

        setattr(owner, method, run)

    def end_step(self) -> None:
        """Keeps the step if it was one of all sequences decoding."""
        if self.is_steady:
            self.steps.append(self._now)
        self._now = defaultdict(float)
        self.is_steady = False


def measure_steps(num_seqs: int, num_steps: int, tokenizer: Tokenizer, kind: str) -> dict[str, Any]:
    """Steps of a steady batch of one of KINDS."""
    clocks = Clocks()
    num_tokens = MIN_PROMPT_TOKENS + BLOCK_SIZE + num_steps + 8
    executor = EmptyExecutor(num_seqs, num_tokens, tokenizer.vocab_size, clocks)
    config = EngineConfig.from_args(max_num_seqs=num_seqs, max_num_batched_tokens=num_seqs * num_tokens)
    client = EngineClient(config, cast(Any, executor), tokenizer)
    engine: Any = client._engine
    core, loop, desk = engine.core, engine.loop, engine.desk
    clocks.wrap(core._scheduler, "plan", "plan")
    clocks.wrap(core._scheduler, "commit", "commit")
    clocks.wrap(core, "_take_tokens", "gains")
    clocks.wrap(executor, "run", "run")
    clocks.wrap(core, "step", "step")
    clocks.wrap(loop, "_take_inbox", "inbox")
    clocks.wrap(core, "stats", "snapshot")
    clocks.wrap(desk, "publish", "snapshot")
    clocks.wrap(desk, "deliver", "streams")
    clocks.after(desk, "deliver", clocks.end_step)
    draw = random.Random(0)
    for i in range(num_seqs):
        prompt = [draw.randrange(16, tokenizer.vocab_size) for _ in range(MIN_PROMPT_TOKENS + i % BLOCK_SIZE)]
        params = SamplingParams(temperature=0.0, max_tokens=num_steps + 2, ignore_eos=True, **KINDS[kind])
        executor.streams.append(client.submit(prompt, params))
    executor.gate.set()
    client.drain(600)
    client.shutdown()
    return {"num_seqs": num_seqs, "kind": kind, **_shares(clocks.steps)}


def _shares(steps: list[dict[str, float]]) -> dict[str, Any]:
    """The engine thread's parts; what is left of `step` when they are taken out is `rest`."""
    steps = steps[len(steps) // 10 :]
    for step in steps:
        step["rest"] = step.pop("step") - sum(step[name] for name in ("plan", "run", "commit", "gains"))
        del step["run"]  # beside what is measured in it only the drawing of random tokens
    ours = [name for name in steps[0] if name not in ("reading", "yardstick")]
    totals = [sum(step[name] for name in ours) for step in steps]
    median = statistics.median(totals)
    parts = {
        name: {
            "median_us": round(statistics.median(step[name] for step in steps), 2),
            "best_us": round(min(step[name] for step in steps), 2),
            "share": round(statistics.median(step[name] for step in steps) / median, 3),
        }
        for name in (*ours, "reading", "yardstick")
    }
    return {
        "num_steps": len(steps),
        "engine": {
            "median_us": round(median, 1),
            "best_us": round(min(totals), 1),
            "p99_us": round(sorted(totals)[int(len(totals) * 0.99)], 1),
        },
        "parts": parts,
    }


def measure_admission(num_tokens: int, repeats: int = 50) -> dict[str, float]:
    """Adding and planning one prompt: from a cold index, and where all its blocks but the last are found."""
    kv = KVCacheManager(2 * -(-num_tokens // BLOCK_SIZE), BLOCK_SIZE)
    config = SchedulerConfig(max_num_seqs=1, max_num_batched_tokens=num_tokens)
    scheduler = Scheduler(config, kv, num_tokens + 1, ())
    draw = random.Random(1)
    times: dict[str, list[float]] = {"cold": [], "warm": []}
    for i in range(repeats):
        prompt = [draw.randrange(10, 30000) for _ in range(num_tokens)]
        for kind in ("cold", "warm"):
            start = time.thread_time()
            scheduler.add(f"{kind}{i}", prompt, SamplingParams(max_tokens=1), seed=i)
            plan = scheduler.plan()
            scheduler.commit(StepResult([7] * len(plan.sequences)))
            times[kind].append(time.thread_time() - start)
    return {
        "num_tokens": num_tokens,
        "cold_us": round(statistics.median(times["cold"]) * 1e6, 1),
        "warm_us": round(statistics.median(times["warm"]) * 1e6, 1),
    }


if __name__ == "__main__":
    main()
