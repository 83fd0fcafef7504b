"""How every benchmark ends: one JSON object with the machine in it, on the last line of stdout and in a file."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with what all benchmarks take: --output and --quick.

    Args:
        doc: the module's docstring, shown by --help.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    parser.add_argument("--quick", action="store_true", help="less of everything: to see that it works")
    return parser


def say(text: str) -> None:
    """A line for whoever watches."""
    print(text, file=sys.stderr, flush=True)


def finish(report: dict[str, Any], output: Path | None) -> None:
    """Adds the machine, prints the report and writes it."""
    text = json.dumps({**report, "machine": describe_machine()})
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text + "\n", encoding="utf-8")
    print(text, flush=True)


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The nearest-rank percentile; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(1, math.ceil(percent / 100 * len(ordered))) - 1]


def rounded(value: Any, digits: int = 4) -> Any:
    """The same data with its floats at so many significant digits; NaN becomes None, which JSON has."""
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item, digits) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value
