"""The charts of the committed figures, and that each benchmark of the engine is in one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

charts = pytest.importorskip("benchmarks.charts", reason="matplotlib is not installed")

FOLDER = Path(__file__).resolve().parents[2] / "docs/benchmarks"


@pytest.fixture(scope="module")
def reports() -> dict:
    return json.loads((FOLDER / "cpu.json").read_text())


def test_the_committed_figures_are_drawn(reports: dict, tmp_path: Path) -> None:
    drawn = charts.draw_all(reports, tmp_path, "cpu")
    assert [path.name for path in drawn] == [f"cpu-{chart}.png" for chart in charts.CHARTS]
    assert {path.name for path in FOLDER.glob("cpu-*.png")} == {path.name for path in drawn}
    assert charts.draw_all({}, tmp_path / "none", "cpu") == [] and not (tmp_path / "none").exists()


def test_what_structured_shows(reports: dict) -> None:
    report = {
        **reports["engine/structured"],
        "step_ms": {"plain": 50.0, "one schema": 52.0, "a schema each": 56.0},
        "of_plain": {"one schema": 1.04, "a schema each": 1.12},
        "masks": {"mean_us": 20.0, "median_us": 10.0, "worst_us": 400.0},
        "compile_s": {"new": 0.007, "known": 0.001},
    }
    left, right = charts.draw_structured({"engine/structured": report}).axes
    assert [label.get_text() for label in left.get_xticklabels()] == [
        "plain",
        "one schema\n+4.0%",
        "a schema each\n+12.0%",
    ]
    assert [bar.get_height() for bar in left.patches] == [50.0, 52.0, 56.0]
    assert left.lines[0].get_ydata()[0] == pytest.approx(55.0)
    assert [bar.get_height() for bar in right.patches] == [0.02, 0.01, 0.4, 7.0, 1.0]
    charts.pyplot.close("all")
