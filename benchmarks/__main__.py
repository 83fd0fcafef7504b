"""Runs the benchmarks one after the other, each in a process of its own, into one JSON file and its charts.

    python -m benchmarks [--quick] [--only engine/offline serving/hosts] [--resume] [--name cpu] [--folder FOLDER]

After each benchmark the file is written again: what is run anew takes the place of what was there, the rest stays. So a
run that was stopped goes on with --resume, and one benchmark is repeated with --only. A benchmark that fails or takes
too long leaves its old entry, and the others go on; the status is then 1. --charts draws the file's charts again.

Every entry is what the benchmark printed as its last JSON object, with `seconds` and the `machine` added.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.machine import describe_machine
from benchmarks.report import say

_ROOT: Final = Path(__file__).resolve().parent.parent
_STOP_GRACE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One benchmark.

    Attributes:
        module: under benchmarks/, with dots.
        arguments: of its command line, which takes --quick besides.
        timeout_s: most seconds that it may take.
    """

    module: str
    arguments: tuple[str, ...] = ()
    timeout_s: float = 900.0


_SMALL = ("--model", "smollm2-135m")

ENTRIES: Final[dict[str, Entry]] = {
    "kernels/linear": Entry("kernels.linear", timeout_s=1800.0),
    "kernels/paged_attention": Entry("kernels.paged_attention"),
    "kernels/sampling": Entry("kernels.sampling"),
    "kernels/rows": Entry("kernels.rows"),
    "engine/overhead": Entry("engine.overhead"),
    "engine/kv_waste": Entry("engine.kv_waste"),
    "engine/prefix": Entry("engine.prefix"),
    "engine/sharing": Entry("engine.sharing"),
    "engine/structured": Entry("engine.structured"),
    "engine/offline": Entry("engine.offline", timeout_s=1800.0),
    "serving/hosts": Entry("serving.hosts"),
    "serving/hosts-135m": Entry(
        "serving.hosts",
        (*_SMALL, "--precision", "bf16", "--streams", "32", "--max-tokens", "64", "--openai-rounds", "1"),
    ),
    "serving/poisson": Entry("serving.poisson", timeout_s=1800.0),
    "serving/poisson-135m": Entry(
        "serving.poisson", (*_SMALL, "--precision", "int8", "--requests", "60"), timeout_s=1800.0
    ),
    "disturbed": Entry("disturbed", (*_SMALL, "--precision", "bf16")),
    "accuracy": Entry("accuracy"),
}
"""In the order in which they run."""


def main() -> None:
    """Runs what is asked for; status 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less of everything: to see that it works")
    parser.add_argument("--only", nargs="+", default=list(ENTRIES), choices=list(ENTRIES), metavar="BENCHMARK")
    parser.add_argument("--resume", action="store_true", help="leave out what the file holds already")
    parser.add_argument("--name", default="cpu", help="of the file and its charts (default cpu)")
    parser.add_argument("--folder", type=Path, help="default: docs/benchmarks, or build/bench with --quick")
    parser.add_argument("--charts", action="store_true", help="run nothing; draw the charts of the file")
    args = parser.parse_args()
    folder = args.folder or _ROOT / ("build/bench" if args.quick else "docs/benchmarks")
    path: Path = folder / f"{args.name}.json"
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    chosen = [] if args.charts else [name for name in args.only if not (args.resume and name in results)]
    failed = []
    for number, name in enumerate(chosen, start=1):
        say(f"== {name} ({number} of {len(chosen)})")
        result = run(ENTRIES[name], quick=args.quick)
        if result is None:
            failed.append(name)
        else:
            results[name] = result
            write(path, results)
    from benchmarks.charts import draw_all

    for chart in draw_all(results, folder, args.name):
        say(f"drew {_shown(chart)}")
    say(f"{_shown(path)}; {len(chosen) - len(failed)} of {len(chosen)} benchmarks ran")
    if failed:
        sys.exit(f"These failed, their messages are above: {', '.join(failed)}")


def run(entry: Entry, *, quick: bool) -> dict[str, Any] | None:
    """Runs one benchmark; its report, or None where there is none."""
    arguments = [*entry.arguments, *(("--quick",) if quick else ())]
    start_s = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.{entry.module}", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
        start_new_session=True,  # so that all that it starts can be stopped with it
    )
    try:
        output, _ = process.communicate(timeout=entry.timeout_s)
    except subprocess.TimeoutExpired:
        say(f"stopped: it took more than {entry.timeout_s:.0f} s")
        return None
    finally:
        _stop(process)
    report = last_json_object(output)
    if report is None:
        say(f"it ended with status {process.returncode} and without a report")
        return None
    if process.returncode:
        say(f"it ended with status {process.returncode}: its report says what failed")
    report.setdefault("machine", describe_machine())
    return {**report, "arguments": arguments, "seconds": round(time.perf_counter() - start_s, 1)}


def last_json_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text ends with, on one line or on many that begin with one of a brace alone."""
    lines = text.rstrip().splitlines()
    for first in range(len(lines) - 1, -1, -1):
        if lines[first].startswith("{"):
            try:
                found = json.loads("\n".join(lines[first:]))
            except ValueError:
                return None
            return found if isinstance(found, dict) else None
    return None


def write(path: Path, results: dict[str, Any]) -> None:
    """Writes the file, whole or not at all, in the benchmarks' order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ordered = {name: results[name] for name in [*ENTRIES, *results] if name in results}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(result)}" for name, result in ordered.items())
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    unfinished.replace(path)


def _stop(process: subprocess.Popen[str]) -> None:
    """Ends a benchmark and what it started; a benchmark that has ended by itself has seen to that."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGINT)  # Python then runs what stops servers
    try:
        process.wait(timeout=_STOP_GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _shown(path: Path) -> Path:
    return path.relative_to(_ROOT) if path.is_relative_to(_ROOT) else path


if __name__ == "__main__":
    main()
