"""The comparison as a PNG: one bar for each engine and precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from benchmarks.peers.candidates import CONTINUOUS, LLAMA, OPENVINO, OURS, STATIC

COLOURS: Final = {
    OURS: "#1b7f5c",
    STATIC: "#b9b9b9",
    CONTINUOUS: "#8c8c8c",
    OPENVINO: "#4a7fb5",
    LLAMA: "#c98a3d",
}


def draw(report: dict[str, Any], file: Path) -> None:
    """Writes the chart of a report of `python -m benchmarks.peers`.

    Raises:
        ImportError: matplotlib is not there: `pip install paged-backend[bench]`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    measured = [entry for entry in report["results"] if entry["output_tokens_per_s"] is not None]
    order = list(COLOURS)
    # barh draws upwards: the first engine, and in it the fastest, is to be on top.
    measured.sort(key=lambda entry: (-order.index(entry["engine"]), entry["output_tokens_per_s"]))
    names = [f"{entry['precision']}{_setting(entry)}" for entry in measured]
    rates = [entry["output_tokens_per_s"] for entry in measured]
    figure, axes = pyplot.subplots(figsize=(10, 1.4 + 0.34 * len(measured)), layout="constrained")
    bars = axes.barh(range(len(rates)), rates, color=[COLOURS[entry["engine"]] for entry in measured], height=0.78)
    axes.bar_label(bars, labels=[f"{rate:.0f}" for rate in rates], padding=4, fontsize=9)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_xlabel("output tokens per second")
    axes.margins(y=0.02)
    axes.set_xlim(0, max(rates) * 1.1)
    axes.spines[["top", "right"]].set_visible(False)
    workload, machine = report["workload"], report["machine"]
    axes.set_title(
        f"{report['model']}, {workload['requests']} requests at once ({workload['name']}), "
        f"{machine['threads']} threads of {machine['processor']}",
        fontsize=10,
        loc="left",
    )
    there = [engine for engine in order if any(entry["engine"] == engine for entry in measured)]
    patches = [Patch(color=COLOURS[engine], label=engine) for engine in there]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=9, frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def _setting(entry: dict[str, Any]) -> str:
    """The one setting that tells bars of the same precision apart."""
    settings = entry["settings"]
    if "batch_size" in settings:
        return f", batches of {settings['batch_size']}"
    if "slots" in settings:
        return f", {settings['slots']} slots"
    if "max_num_batched_tokens" in settings:
        return f", {settings['max_num_batched_tokens']} tokens a step"
    if "properties" in settings:
        return ", " + ", ".join(f"{name.lower()} {value}" for name, value in settings["properties"].items())
    return ""
