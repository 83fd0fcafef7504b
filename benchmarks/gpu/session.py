"""One engine with one set of settings, in a process of its own, so that all of the card's memory is its own.

    python -m benchmarks.gpu.session ASKED ANSWERED

Both are JSON files. The answer is written anew after every workload: what was measured stays when time runs out. Before
a workload the engine answers a like one with other prompts and two tokens each, so that nothing is compiled, tuned
or recorded while time is taken.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.peers.process import run_process
from benchmarks.workloads import WARM_UP_SEED, BenchRequest, load_workload

_LONGEST_WARM_UP = 256  # requests


@dataclass(frozen=True)
class Asked:
    """What a session is to do.

    Attributes:
        engine: a key of `engines.ENGINES`.
        model: a Hugging Face folder.
        settings: as the engine takes them.
        workloads: names, in order (see `benchmarks.workloads`).
        limits: workload to how many of its requests are sent; all of those that are not named.
        vocab_size: of the prompts.
        max_model_len: of the longest request.
    """

    engine: str
    model: str
    settings: Mapping[str, Any]
    workloads: tuple[str, ...]
    limits: Mapping[str, int]
    vocab_size: int
    max_model_len: int

    def requests(self, workload: str, seed: int = 0) -> list[BenchRequest]:
        """The workload's, or the first of them."""
        requests = load_workload(workload, self.vocab_size, seed).requests
        return requests[: self.limits.get(workload, len(requests))]


@dataclass
class Answered:
    """What a session has measured.

    Attributes:
        start_s: until the engine was ready.
        seconds: workload to how long it took.
        first_tokens: workload to the output tokens of its first request.
        versions: of the packages that did the work.
        error: how the session ended, if not well.
    """

    start_s: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    first_tokens: dict[str, list[int]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    error: str | None = None


Generate = Callable[[list[BenchRequest]], list[list[int]]]
"""The output tokens of each request."""
Started = tuple[Generate, dict[str, str]]
"""What answers, and the versions of what it is."""


def run_session(asked: Asked, timeout_s: float) -> Answered:
    """Runs it in a process; what goes wrong is in the answer."""
    with tempfile.TemporaryDirectory() as folder:
        question, answer = Path(folder) / "asked.json", Path(folder) / "answered.json"
        question.write_text(json.dumps(asdict(asked)))
        error = None
        try:
            run_process([sys.executable, "-m", "benchmarks.gpu.session", str(question), str(answer)], timeout_s)
        except (OSError, RuntimeError) as failure:
            error = str(failure)
        answered = Answered(**json.loads(answer.read_text())) if answer.exists() else Answered()
        return replace(answered, error=error)


def measure(asked: Asked, start: Callable[[Asked], Started], keep: Callable[[Answered], None]) -> None:
    """Starts the engine, answers the workloads, and hands over what is known after each.

    Raises:
        RuntimeError: an answer does not have as many tokens as were asked for.
    """
    begin = time.perf_counter()
    generate, versions = start(asked)
    answered = Answered(start_s=round(time.perf_counter() - begin, 2), versions=versions)
    keep(answered)
    for workload in asked.workloads:
        before = asked.requests(workload, WARM_UP_SEED)[:_LONGEST_WARM_UP]
        generate([replace(request, num_output_tokens=min(2, request.num_output_tokens)) for request in before])
        requests = asked.requests(workload)
        begin = time.perf_counter()
        outputs = generate(requests)
        answered.seconds[workload] = time.perf_counter() - begin
        lengths = [len(tokens) for tokens in outputs]
        if lengths != [request.num_output_tokens for request in requests]:
            raise RuntimeError(f"{workload}: {asked.engine} did not give as many tokens as were asked for.")
        answered.first_tokens[workload] = outputs[0]
        keep(answered)


def end_children() -> None:
    """Ends the processes that an engine has started: they hold the card's memory, and this process's output open."""
    for child in multiprocessing.active_children():
        child.kill()
        child.join()


def main() -> None:
    """The process."""
    from benchmarks.gpu.engines import ENGINES

    question, answer = map(Path, sys.argv[1:])
    content = json.loads(question.read_text())
    asked = Asked(**content)

    def keep(answered: Answered) -> None:
        unfinished = answer.with_suffix(".part")
        unfinished.write_text(json.dumps(asdict(answered)))
        unfinished.replace(answer)

    measure(asked, ENGINES[asked.engine], keep)
    sys.stdout.flush()
    end_children()
    os._exit(0)  # some engines' threads outlive their owners; the work is done and written


if __name__ == "__main__":
    main()
