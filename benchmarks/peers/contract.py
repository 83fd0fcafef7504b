"""What the orchestrator and a peer's runner say to each other: two JSON files, nothing else.

A runner is `python -m benchmarks.peers.runners.NAME JOB RESULT` in the virtual environment that has the peer. It needs
the standard library and the peer, not paged-backend. All requests are there at once; it answers them greedily, each
with exactly as many tokens as are asked for, and tells the wall time from handing over the first to having the last.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.workloads import BenchRequest

# Each runner first answers a short workload of its own making, so that lazy set-up is not measured.
WARM_UP_REQUESTS: Final = 4
WARM_UP_PROMPT_TOKENS: Final = 24
WARM_UP_OUTPUT_TOKENS: Final = 4


@dataclass(frozen=True)
class Job:
    """What a runner is to do.

    Attributes:
        model: the folder in the peer's own format.
        settings: the peer's settings, as the list of candidates has them.
        requests: all are there at once.
        num_threads: cores that the peer may use.
        executable: the peer's program, where it is not a Python package.
    """

    model: str
    settings: dict[str, Any]
    requests: list[BenchRequest]
    num_threads: int
    executable: str | None = None

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest request, prompt and output together, the warm-up's included."""
        longest = max(len(request.prompt_token_ids) + request.num_output_tokens for request in self.requests)
        return max(longest, WARM_UP_PROMPT_TOKENS + WARM_UP_OUTPUT_TOKENS)

    def warm_up(self) -> list[BenchRequest]:
        """A few short requests whose prompts share nothing with the job's."""
        last = max(max(request.prompt_token_ids) for request in self.requests)
        return [
            BenchRequest([last - 97 * index - place for place in range(WARM_UP_PROMPT_TOKENS)], WARM_UP_OUTPUT_TOKENS)
            for index in range(WARM_UP_REQUESTS)
        ]


@dataclass(frozen=True)
class Outcome:
    """What a runner measured.

    Attributes:
        seconds: wall time of the whole workload.
        output_token_ids: per request, in the job's order.
        cpu_s: processor time that the peer spent in these seconds; 2 cores' worth is the most on 2 cores. None where
            it is not known.
        versions: of the packages that did the work.
        notes: what else is worth keeping, such as settings that the peer chose by itself.
    """

    seconds: float
    output_token_ids: list[list[int]]
    cpu_s: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


class Stopwatch:
    """Wall and processor time of this process, all threads, from its making on."""

    def __init__(self) -> None:
        self._start_s = time.perf_counter()
        self._start_cpu_s = time.process_time()

    def stop(self) -> tuple[float, float]:
        """(seconds, processor seconds) since the start."""
        return time.perf_counter() - self._start_s, time.process_time() - self._start_cpu_s


def write_job(path: Path, job: Job) -> None:
    """The orchestrator's half."""
    path.write_text(json.dumps(asdict(job)))


def read_outcome(path: Path, job: Job) -> Outcome:
    """The orchestrator's half; checks that every request was answered in full.

    Raises:
        ValueError: an answer has the wrong length.
    """
    outcome = Outcome(**json.loads(path.read_text()))
    lengths = [len(token_ids) for token_ids in outcome.output_token_ids]
    asked = [request.num_output_tokens for request in job.requests]
    if lengths != asked:
        wrong = [index for index, pair in enumerate(zip(lengths, asked, strict=False)) if pair[0] != pair[1]]
        raise ValueError(f"{len(lengths)} answers to {len(asked)} requests; wrong lengths in requests {wrong}")
    return outcome


def main(run: Callable[[Job], Outcome]) -> None:
    """A runner's main: reads the job that the command line names, and writes the outcome."""
    job_path, outcome_path = map(Path, sys.argv[1:])
    content = json.loads(job_path.read_text())
    content["requests"] = [BenchRequest(**request) for request in content["requests"]]
    outcome = run(Job(**content))
    outcome_path.write_text(json.dumps(asdict(outcome)))
    sys.stdout.flush()
    # Some peers' threads outlive their owners; the work is done and written.
    os._exit(0)
