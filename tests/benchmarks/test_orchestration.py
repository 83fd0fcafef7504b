"""What runs the benchmarks: reports are found, kept and drawn, and one that fails costs no other."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.report import percentile, rounded

main = import_module("benchmarks.__main__")


def test_the_last_object_is_the_report() -> None:
    assert main.last_json_object('x\n{"a": 1}\nsaid\n{"a": 2}\n') == {"a": 2}
    assert main.last_json_object("x\n" + json.dumps({"a": {"b": 1}}, indent=2) + "\n") == {"a": {"b": 1}}
    assert main.last_json_object("nothing\n") is None
    assert main.last_json_object('{"cut": \n') is None


def test_what_runs_anew_replaces_and_the_rest_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    charts = pytest.importorskip("benchmarks.charts", reason="matplotlib is not installed")
    monkeypatch.setattr(charts, "CHARTS", {})
    path = tmp_path / "cpu.json"
    path.write_text(json.dumps({"disturbed": {"old": 1}, "engine/overhead": {"old": 1}}))
    reports = {"engine.overhead": {"new": 1}, "accuracy": None}
    monkeypatch.setattr(main, "run", lambda entry, quick: reports[entry.module])
    command = ["benchmarks", "--folder", str(tmp_path), "--only", "engine/overhead", "accuracy"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="accuracy"):
        main.main()
    assert json.loads(path.read_text()) == {"engine/overhead": {"new": 1}, "disturbed": {"old": 1}}


def test_a_benchmark_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "slow.py").write_text("import time\ntime.sleep(60)\n")
    (folder / "quick.py").write_text("print('hello')\nprint('{\"figure\": 1}')\n")
    monkeypatch.setattr(main, "_ROOT", tmp_path)
    assert main.run(main.Entry("slow", timeout_s=0.5), quick=False) is None
    report = main.run(main.Entry("quick"), quick=True)
    assert report is not None and report["figure"] == 1 and report["machine"]["cores"] >= 1


def test_numbers_are_made_readable() -> None:
    assert rounded({"a": [1.23456, float("nan")], "b": (2, "x")}) == {"a": [1.235, None], "b": [2, "x"]}
    assert percentile([], 50) is None
    assert percentile([3, 1, 2], 50) == 2 and percentile(range(1, 101), 99) == 99
