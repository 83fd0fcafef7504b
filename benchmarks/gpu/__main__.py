"""The Triton kernels and the engine on a GPU: right, beside the card's limits, and beside other engines.

    python -m benchmarks.gpu [--models qwen3-0.6b llama-3.2-1b] [--minutes 8] [--quick] [--output FILE]

Checks every kernel against float64 and whether rows have the bits that they have alone; measures kernels beside
bandwidth and matmul rate, which are measured in the same run; then, in a process each, our engine, transformers'
`generate` and continuous batching, and vLLM where it can be imported: one stream and 256 streams at a context of 512
(decode alone, a difference of two runs), and 1,000 requests of ShareGPT's lengths at once; and what our engine's
settings cost. Models have random weights. Prints tables, and ends in one JSON object, kept in a file too
(docs/benchmarks/gpu.json; build/bench/gpu.json for --quick and --dry-run). What the minutes did not suffice for is
listed. Kernels that were compiled once are kept by Triton: the second run has more time.

Status 1 where a check has failed, 2 where there is no NVIDIA GPU. --dry-run tries the script without one: in Triton's
interpreter, with the bundled model on the CPU. Its times say nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.budget import Budget
from benchmarks.gpu.card import Card, Rates
from benchmarks.gpu.models import ModelRuns, RunSession
from benchmarks.gpu.plan import FULL, QUICK, TRIAL, Amounts, candidates
from benchmarks.gpu.session import run_session
from benchmarks.gpu.table import render
from benchmarks.machine import describe_machine
from benchmarks.models import SHAPES, ensure_model
from benchmarks.peers.tools import ROOT
from benchmarks.report import finish, make_parser, say

SMALL_MODELS = ("qwen3-0.6b", "llama-3.2-1b")
CHECKS_SHARE, SPEEDS_SHARE = 0.2, 0.12
_TRIAL_MODEL = ROOT / "model_store" / "paged-tiny"


def run(
    card: Card, models: dict[str, Callable[[], Path]], amounts: Amounts, budget: Budget, session: RunSession
) -> dict[str, Any]:
    """The whole benchmark.

    Args:
        models: name to what gives the model's folder.
        session: runs one engine.
    """
    rates = card.rates()
    checks = _checks(card, budget.part(CHECKS_SHARE), amounts)
    speeds = _speeds(card, rates, budget.part(SPEEDS_SHARE))
    card.free()
    return {
        "benchmark": "gpu",
        "machine": describe_machine(),
        "card": card.describe(),
        "rates": {"bandwidth_gb_per_s": rates.bandwidth / 1e9, "matmul_tflops": rates.matmul / 1e12},
        "checks": checks,
        "speeds": speeds,
        "models": _models(card, rates, models, amounts, budget, session),
        "skipped": budget.skipped,
    }


def _checks(card: Card, budget: Budget, amounts: Amounts) -> list[dict[str, Any]]:
    from benchmarks.gpu import checks  # lazy: it needs Triton, whose interpreter is chosen before

    sizes = checks.TRIAL if not card.is_real else checks.FEW if amounts is QUICK else checks.ON_CARD
    done = []
    for operation, case, check in checks.all_checks(card.device, sizes):
        if budget.allows(f"check of {operation}, {case}"):
            verdict = checks.run_check(operation, case, check)
            say(f"{operation}, {case}: {'good' if verdict.good else f'WRONG {verdict}'}")
            done.append({**asdict(verdict), "good": verdict.good})
    return done


def _speeds(card: Card, rates: Rates, budget: Budget) -> list[dict[str, Any]]:
    from benchmarks.gpu import speeds

    sizes = speeds.ON_CARD if card.is_real else speeds.TRIAL
    done = []
    for name, measure in speeds.all_speeds(card, rates, sizes):
        if budget.allows(name):
            say(name)
            done.append(asdict(speeds.measure(name, measure)))
            card.free()
    return done


def _models(
    card: Card,
    rates: Rates,
    models: dict[str, Callable[[], Path]],
    amounts: Amounts,
    budget: Budget,
    session: RunSession,
) -> dict[str, Any]:
    """Each candidate on all models before the next candidate: what is wanted most is there for all of them."""
    runs = []
    for name, folder in models.items():
        if budget.allows(name):
            say(f"{name}: making its weights, where they are not there")
            runs.append(ModelRuns(name, folder(), rates, amounts))
            card.free()
    for candidate in candidates(amounts, card.device.type):
        for model in runs:
            model.run(candidate, budget, session)
    return {model.name: model.report() for model in runs}


def _arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    shapes = [name for name in SHAPES if name != "smollm2-135m"]
    parser.add_argument("--models", nargs="+", choices=shapes, default=list(SMALL_MODELS), metavar="MODEL")
    parser.add_argument("--minutes", type=float, default=8.0, help="that all of it may take")
    parser.add_argument("--dry-run", action="store_true", help="try the script on the CPU")
    args = parser.parse_args()
    is_whole = not args.quick and not args.dry_run
    args.output = args.output or ROOT / ("docs/benchmarks" if is_whole else "build/bench") / "gpu.json"
    return args


def main() -> None:
    """Measures, and prints the tables and the JSON."""
    args = _arguments()
    if args.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
    elif not torch.cuda.is_available():
        print("no NVIDIA GPU is there, or torch was built without CUDA: --dry-run tries the script", file=sys.stderr)
        sys.exit(2)
    device = "cpu" if args.dry_run else "cuda"
    amounts = TRIAL if args.dry_run else QUICK if args.quick else FULL
    models: dict[str, Callable[[], Path]] = {name: _maker(name, device) for name in args.models}
    if args.dry_run:
        models = {"paged-tiny": lambda: _TRIAL_MODEL}
    report = run(Card(device), models, amounts, Budget(60 * args.minutes), run_session)
    print(render(report), flush=True)
    finish(report, args.output)
    if not all(check["good"] for check in report["checks"]):
        sys.exit(1)


def _maker(name: str, device: str) -> Callable[[], Path]:
    return lambda: ensure_model(name, device=device)


if __name__ == "__main__":
    main()
