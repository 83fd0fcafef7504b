"""Every benchmark takes the arguments that it is run with, and the chart shows what the kernels' report."""

from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module
from typing import Any

import pytest

ENTRIES = import_module("benchmarks.__main__").ENTRIES


class _ParsedError(Exception):
    """A command line was accepted."""


@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
@pytest.mark.parametrize("name", ENTRIES)
def test_every_benchmark_takes_its_arguments(name: str, quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    parse_args = argparse.ArgumentParser.parse_args

    def parse(parser: argparse.ArgumentParser, *args: Any) -> None:
        parse_args(parser, *args)
        raise _ParsedError

    entry = ENTRIES[name]
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.setattr(sys, "argv", [name, *entry.arguments, *(("--quick",) if quick else ())])
    with pytest.raises(_ParsedError):
        import_module(f"benchmarks.{entry.module}").main()


KERNELS = [name for name in ENTRIES if name.startswith("kernels/")]


@pytest.mark.parametrize("name", KERNELS)
def test_the_chart_shows_every_kernel(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    charts = pytest.importorskip("benchmarks.charts", reason="matplotlib is not installed")
    module = import_module(f"benchmarks.{ENTRIES[name].module}")
    monkeypatch.setattr(module, "COLD_BYTES", 1 << 20)
    if name == "kernels/sampling":
        monkeypatch.setattr(module, "SHAPES", ((2, 1000),))
    monkeypatch.setattr(sys, "argv", [name, "--quick", "--threads", "1"])
    module.main()
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["benchmark"] == name and report["machine"]["cores"] >= 1
    figure = charts.draw_kernels({name: report})
    bars = figure.axes[0].patches
    assert bars and all(bar.get_width() > 0 for bar in bars)
    charts.pyplot.close(figure)
