"""paged-backend and its peers side by side: same model, same work, one after the other in one run.

    python -m benchmarks.peers [--model smollm2-135m] [--workload lognormal-48] [--only llama "int8 weights"]
                               [--rounds 1] [--limit N] [--sweep] [--output FILE] [--chart FILE]

Ours runs first and last, so that a machine that changed meanwhile is seen. Every peer is installed by
`make bench-peers`, which also runs this. Ends in one JSON object, kept in a file too that is written anew after every
run: docs/benchmarks/peers.json with its chart, or in build/bench for --only, --limit and --sweep. Status 1 where a
candidate failed. --sweep looks for each peer's best settings instead of comparing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.models import SHAPES, ensure_model
from benchmarks.peers import candidates, compare
from benchmarks.peers.candidates import OURS, RUNNERS, Candidate
from benchmarks.peers.contract import Job, Outcome, read_outcome, write_job
from benchmarks.peers.process import run_process
from benchmarks.peers.tools import ROOT, PeerTools, in_format
from benchmarks.workloads import Workload, load_workload


@dataclass
class Entry:
    """A candidate's runs.

    Attributes:
        outcomes: of the runs that went well, in order.
        loads: the machine's load (waiting and running threads) before each of them.
        error: what the last failed run said.
    """

    candidate: Candidate
    outcomes: list[Outcome] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True)
class Bench:
    """What all runs have in common."""

    model: Path
    workload: Workload
    tools: PeerTools
    num_threads: int
    timeout_s: float

    def run(self, entry: Entry) -> None:
        """One run of a candidate, in a process of its own; a failure is kept, not raised."""
        candidate = entry.candidate
        entry.loads.append(round(os.getloadavg()[0], 1))
        try:
            outcome = self._run(candidate)
        except (OSError, RuntimeError, ValueError) as error:
            entry.error = str(error)
            entry.loads.pop()
            print(f"{candidate.label}: FAILED\n{error}", file=sys.stderr, flush=True)
            return
        entry.outcomes.append(outcome)
        cores = "" if outcome.cpu_s is None else f", {outcome.cpu_s / outcome.seconds:.2f} cores busy"
        rate = self.workload.num_output_tokens / outcome.seconds
        print(f"{candidate.label}: {rate:.1f} tokens/s{cores}", file=sys.stderr, flush=True)

    def _run(self, candidate: Candidate) -> Outcome:
        model = in_format(self.model, candidate.model_format, self.tools)
        job = Job(
            str(model), candidate.settings, self.workload.requests, self.num_threads, str(self.tools.llama_server)
        )
        python = sys.executable if candidate.engine == OURS else str(self.tools.python)
        with tempfile.TemporaryDirectory() as folder:
            asked, answered = Path(folder) / "job.json", Path(folder) / "outcome.json"
            write_job(asked, job)
            runner = f"benchmarks.peers.runners.{RUNNERS[candidate.engine]}"
            run_process([python, "-m", runner, str(asked), str(answered)], self.timeout_s)
            return read_outcome(answered, job)

    def report(self, entries: list[Entry]) -> dict[str, Any]:
        """Everything that was measured so far; tokens themselves are left out."""
        results = [self._result(entry) for entry in entries]
        return {
            "benchmark": "peers",
            "model": self.model.name,
            "workload": {
                "name": self.workload.name,
                "requests": len(self.workload.requests),
                "prompt_tokens": self.workload.num_prompt_tokens,
                "output_tokens": self.workload.num_output_tokens,
            },
            "machine": {"processor": _processor(), "threads": self.num_threads, "system": platform.platform()},
            "results": results,
            "ratios": _ratios(results),
        }

    def _result(self, entry: Entry) -> dict[str, Any]:
        seconds = [outcome.seconds for outcome in entry.outcomes]
        rates = [round(self.workload.num_output_tokens / each, 2) for each in seconds]
        last = entry.outcomes[-1] if entry.outcomes else None
        return {
            "engine": entry.candidate.engine,
            "precision": entry.candidate.precision,
            "settings": entry.candidate.settings,
            "output_tokens_per_s": statistics.median(rates) if rates else None,
            "output_tokens_per_s_by_run": rates,
            "last_to_first": round(rates[-1] / rates[0], 3) if len(rates) > 1 else None,
            "seconds": [round(each, 3) for each in seconds],
            "cores_busy": [round(o.cpu_s / o.seconds, 2) for o in entry.outcomes if o.cpu_s is not None],
            "load_before": entry.loads,
            "versions": last.versions if last else {},
            "notes": last.notes if last else {},
            "error": entry.error,
        }


def _ratios(results: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Each precision of ours over the best of each peer."""
    best: dict[str, float] = {}
    for result in results:
        rate = result["output_tokens_per_s"]
        if rate is not None and result["engine"] != OURS:
            best[result["engine"]] = max(rate, best.get(result["engine"], 0.0))
    return {
        result["precision"]: {engine: round(result["output_tokens_per_s"] / rate, 2) for engine, rate in best.items()}
        for result in results
        if result["engine"] == OURS and result["output_tokens_per_s"] is not None
    }


def _compare(bench: Bench, entries: list[Entry]) -> dict[str, Any]:
    """The exact runs' tokens against the first exact one's, transformers' where it took part."""
    exact = [entry for entry in entries if entry.candidate.is_exact and entry.outcomes]
    exact.sort(key=lambda entry: entry.candidate.engine != candidates.STATIC)
    if not exact:
        return {}
    reference, *others = exact
    expected = reference.outcomes[0].output_token_ids
    compared = {}
    for entry in others:
        print(f"comparing the tokens of {entry.candidate.label}", file=sys.stderr, flush=True)
        tokens = entry.outcomes[0].output_token_ids
        compared[entry.candidate.label] = compare.describe(
            bench.model, bench.workload.requests, expected, tokens, bench.tools
        )
    return {"reference": reference.candidate.label, "others": compared}


def _processor() -> str:
    """The processor's own name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _chosen(args: argparse.Namespace) -> list[Candidate]:
    everyone = candidates.SWEEP if args.sweep else candidates.BEST
    if not args.only:
        return list(everyone)
    chosen = [one for one in everyone if any(text.lower() in one.label.lower() for text in args.only)]
    if not chosen:
        raise SystemExit("--only leaves nobody of:\n  " + "\n  ".join(one.label for one in everyone))
    return chosen


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="paged-backend and its peers, side by side.")
    parser.add_argument("--model", default="smollm2-135m", help=f"{', '.join(SHAPES)}, or a Hugging Face folder")
    parser.add_argument("--workload", default="lognormal-48", help="or fixed-REQUESTSxPROMPTxOUTPUT, in tokens")
    parser.add_argument("--limit", type=int, help="only the first so many requests of the workload")
    parser.add_argument("--only", nargs="+", help="only candidates with one of these in their names")
    parser.add_argument("--sweep", action="store_true", help="look for each peer's best settings")
    parser.add_argument("--rounds", type=int, default=1, help="medians over so many runs of everybody")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--timeout-s", type=float, default=1800.0, help="for one run")
    parser.add_argument("--peers-folder", type=Path, default=ROOT / ".venv-peers", help="filled by make bench-peers")
    parser.add_argument("--output", type=Path, help="default: docs/benchmarks/peers.json; in build/bench for a part")
    parser.add_argument("--chart", type=Path, help="a PNG file; default: beside --output")
    parser.add_argument("--redraw", type=Path, help="only draw --chart from this earlier --output")
    args = parser.parse_args()
    is_whole = args.limit is None and not args.only and not args.sweep
    folder = ROOT / ("docs/benchmarks" if is_whole else "build/bench")
    args.output = args.redraw or args.output or folder / ("peers-sweep.json" if args.sweep else "peers.json")
    args.chart = args.chart or args.output.with_suffix(".png")
    return args


def main() -> None:
    """Measures everybody, compares tokens, draws, and ends in JSON."""
    args = _arguments()
    if args.redraw is not None:
        _draw(json.loads(args.redraw.read_text()), args.chart)
        return
    model = ensure_model(args.model) if args.model in SHAPES else Path(args.model).resolve()
    vocab_size = json.loads((model / "config.json").read_text())["vocab_size"]
    workload = load_workload(args.workload, vocab_size)
    if args.limit is not None:
        workload = workload.first(args.limit)
    bench = Bench(model, workload, PeerTools(args.peers_folder.absolute()), args.threads, args.timeout_s)
    entries = [Entry(candidate) for candidate in _chosen(args)]
    us = [entry for entry in entries if entry.candidate.engine == OURS]
    peers = [entry for entry in entries if entry.candidate.engine != OURS]
    for entry in [*us, *peers] * args.rounds + us:
        if entry.error is None:
            bench.run(entry)
            _keep(bench.report(entries), args.output)
    report = bench.report(entries)
    report["greedy_tokens"] = _compare(bench, entries)
    _keep(report, args.output)
    _draw(report, args.chart)
    print(json.dumps(report))
    if failed := [entry.candidate.label for entry in entries if entry.error is not None]:
        sys.exit("These failed, their messages are above:\n  " + "\n  ".join(failed))


def _keep(report: dict[str, Any], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=2) + "\n")


def _draw(report: dict[str, Any], file: Path) -> None:
    from benchmarks.peers.chart import draw

    draw(report, file)


if __name__ == "__main__":
    main()
