"""Draws what the benchmarks found. Each function takes all reports by name, and draws only where its own are there."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Reports = Mapping[str, Mapping[str, Any]]

_COLOURS: Final = ("#3b6ea5", "#d98a2b", "#5a9e6f", "#a5527a", "#7a6bb0", "#8a8a8a")
_GOALS: Final = {"bentoml": 0.90, "torchserve": 0.85}
_SIZES: Final = frozenset("m n k M N K rows".split())
"""Keys whose numbers tell a kernel's cases apart."""

_WIDTH: Final = 9.0  # inches, as is the next
_HEIGHT: Final = 4.2


def draw_all(reports: Reports, folder: Path, name: str) -> list[Path]:
    """Draws every chart whose reports are there, as folder/NAME-CHART.png; returns the files."""
    drawn = []
    for chart, draw in CHARTS.items():
        figure = draw(reports)
        if figure is None:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}-{chart}.png"
        # Without the date and versions that matplotlib would write, the same figures give the same file.
        figure.savefig(path, dpi=110, metadata={"Software": None})
        pyplot.close(figure)
        drawn.append(path)
    return drawn


def draw_kernels(reports: Reports) -> Figure | None:
    """How near each kernel comes to the limit that was measured with it.

    A report's `results` may nest as they like: what counts is `of_limit`. A bar is the median of
    a layer's shapes, the dot is the worst of them.
    """
    found: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for name in reports:
        if name.startswith("kernels/"):
            for label, value in _fractions(reports[name].get("results", {}), ""):
                found[name.partition("/")[2], label].append(value)
    points = [(kernel, label, statistics.median(values)) for (kernel, label), values in found.items()]
    if not points:
        return None
    figure, axes = _figure(height=max(_HEIGHT, 1.2 + 0.17 * len(points)))
    kernels = list(dict.fromkeys(kernel for kernel, _, _ in points))
    axes.barh(
        [f"{kernel} {label}" for kernel, label, _ in points],
        [value for _, _, value in points],
        color=[_COLOURS[kernels.index(kernel) % len(_COLOURS)] for kernel, _, _ in points],
    )
    axes.scatter([min(values) for values in found.values()], range(len(points)), s=6, color="#222222", zorder=3)
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("of the machine's limit, measured in the same run")
    axes.set_xlim(0, max(1.0, *(value for _, _, value in points)))
    axes.axvline(0.75, color="#444444", linewidth=0.8, linestyle="--")
    return figure


def draw_throughput(reports: Reports) -> Figure | None:
    """Tokens a second of each configuration, and one stream against the memory's limit."""
    results = [one for one in reports.get("engine/offline", {}).get("results", []) if "throughput" in one]
    if not results:
        return None
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(_WIDTH, _HEIGHT), layout="constrained")
    labels = [f"{one['model'].replace('-', chr(10), 1)}\n{one['precision']}" for one in results]
    workloads = list(dict.fromkeys(workload for one in results for workload in one["throughput"]))
    for number, workload in enumerate(workloads):
        values = [one["throughput"].get(workload, {}).get("output_tokens_per_s", 0.0) for one in results]
        _grouped_bars(left, labels, values, number, len(workloads), workload)
    left.set_ylabel("output tokens/s")
    left.margins(y=0.35)  # for the legend
    left.legend(loc="upper right")
    streams = [one.get("one_stream", {}) for one in results]
    _grouped_bars(right, labels, [one.get("limit_tokens_per_s", 0.0) for one in streams], 0, 2, "memory's limit")
    _grouped_bars(right, labels, [one.get("tokens_per_s", 0.0) for one in streams], 1, 2, "one stream")
    right.set_ylabel("tokens/s")
    right.margins(y=0.2)
    right.legend(loc="upper right")
    return figure


def draw_kv_waste(reports: Reports) -> Figure | None:
    """Reserved slots without a token, as a share of the reserved ones, over a run's time."""
    found = [
        (f"{one['model']}, {workload}", run["kv_waste_curve"], run["kv_waste"])
        for one in reports.get("engine/offline", {}).get("results", [])
        for workload, run in one.get("throughput", {}).items()
    ]
    runs = list({label: (label, curve, mean) for label, curve, mean in reversed(found)}.values())[::-1]
    if not runs:
        return None
    figure, axes = _figure()
    for number, (label, curve, mean) in enumerate(runs):
        end_s = curve[-1][0] or 1.0
        points = [(at_s / end_s, empty / reserved) for at_s, reserved, empty in curve if reserved]
        colour = _COLOURS[number % len(_COLOURS)]
        axes.plot(*zip(*points, strict=True), label=f"{label}: {mean:.1%} on average", color=colour, linewidth=1)
    axes.axhline(0.04, color="#444444", linewidth=0.8, linestyle="--")
    axes.set_xlabel("of the run's time")
    axes.set_ylabel("reserved but empty / reserved")
    axes.set_ylim(0, 0.2)
    axes.legend()
    return figure


def draw_sharing(reports: Reports) -> Figure | None:
    """The cache's bytes with sharing and without, and the first token's time by where the prompt's prefix was."""
    runs = reports.get("engine/sharing", {}).get("runs", [])
    prefix = reports.get("engine/prefix", {})
    if not runs or not prefix:
        return None
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(_WIDTH, _HEIGHT), layout="constrained")
    labels = [f"{run['kind']}\n{run['weighted']:.0%} saved" for run in runs]
    for number, (key, label) in enumerate((("bytes_without_sharing", "without sharing"), ("bytes", "shared"))):
        _grouped_bars(left, labels, [run[key] / 2**20 for run in runs], number, 2, label)
    left.set_ylabel("most KV cache held, MiB")
    left.margins(y=0.25)
    left.legend(loc="upper right")
    kinds = prefix["kinds"]
    labels = [f"{kind}\n{found['hit_rate']:.0%} hit" for kind, found in kinds.items()]
    for number, (key, label) in enumerate((("first_token_s", "median"), ("first_token_p90_s", "p90"))):
        _grouped_bars(right, labels, [found[key] * 1e3 for found in kinds.values()], number, 2, label)
    right.set_ylabel("time to first token, ms")
    right.set_title(f"{prefix['model']}, system prompt of {prefix['system_tokens']} tokens", fontsize=8)
    right.legend(loc="upper right")
    return figure


def draw_structured(reports: Reports) -> Figure | None:
    """A step with schemas beside the same without, and what a mask and a grammar cost by themselves."""
    report = reports.get("engine/structured", {})
    if not report:
        return None
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(_WIDTH, _HEIGHT), layout="constrained")
    steps = report["step_ms"]
    more = {kind: f"\n{ratio - 1:+.1%}" for kind, ratio in report["of_plain"].items()}
    left.bar([kind + more.get(kind, "") for kind in steps], list(steps.values()), color=_COLOURS[: len(steps)])
    left.axhline(steps["plain"] * 1.1, color="#444444", linewidth=0.8, linestyle="--", label="goal: under + 10 %")
    left.set_ylabel("a step, ms")
    left.set_title(f"{report['model']}, {report['streams']} streams", fontsize=8)
    left.margins(y=0.25)
    left.legend(loc="upper right")
    masks = {f"a mask,\n{name.removesuffix('_us')}": value / 1e3 for name, value in report["masks"].items()}
    grammars = {f"a grammar,\n{name}": value * 1e3 for name, value in report["compile_s"].items()}
    right.bar(list(masks), list(masks.values()), color=_COLOURS[3])
    right.bar(list(grammars), list(grammars.values()), color=_COLOURS[4])
    right.set_yscale("log")
    right.set_ylabel("ms")
    right.tick_params(axis="x", labelsize=7)
    return figure


def draw_hosts(reports: Reports) -> Figure | None:
    """What each host leaves of the bare engine's tokens a second."""
    bars = [
        (f"{host}, {one['streams']} streams\n{report['model']}", one["plain"][host]["of_engine"], host)
        for name, report in reports.items()
        if name.startswith("serving/hosts")
        for one in report["results"]
        for host in _GOALS
        if host in one.get("plain", {})
    ]
    if not bars:
        return None
    figure, axes = _figure()
    hosts = list(_GOALS)
    axes.bar(
        [label for label, _, _ in bars],
        [value for _, value, _ in bars],
        color=[_COLOURS[hosts.index(host)] for _, _, host in bars],
    )
    for host, goal in _GOALS.items():
        axes.axhline(goal, color=_COLOURS[hosts.index(host)], linewidth=0.8, linestyle="--", label=f"goal for {host}")
    axes.tick_params(axis="x", labelsize=7)
    axes.set_ylabel("of the bare engine's tokens/s")
    axes.margins(y=0.25)
    axes.legend(loc="upper left")
    return figure


def draw_serving(reports: Reports) -> Figure | None:
    """Latencies and goodput of Poisson arrivals against their rate, a row for each model."""
    names = [name for name in reports if name.startswith("serving/poisson")]
    if not names:
        return None
    figure, grid = pyplot.subplots(
        len(names), 3, figsize=(_WIDTH, _HEIGHT * 0.8 * len(names)), layout="constrained", squeeze=False
    )
    for row, name in zip(grid, names, strict=True):
        report = reports[name]
        for number, (host, records) in enumerate(_by(report["results"], "host").items()):
            rates = [one["rate_per_s"] for one in records]
            colour = _COLOURS[number]
            for axes, key in zip(row, ("ttft_ms", "itl_ms"), strict=False):
                for percent, style in (("p50", "-"), ("p99", "--")):
                    values = [one[key][percent] for one in records]
                    axes.plot(rates, values, style, marker="o", markersize=3, color=colour, label=f"{host} {percent}")
            goodput = [one["goodput_per_s"] for one in records]
            row[2].plot(rates, goodput, "-", marker="o", markersize=3, color=colour, label=host)
        for axes, title in zip(row, ("TTFT, ms", "ITL, ms", "goodput, requests/s"), strict=True):
            axes.set_title(f"{report['model']}, {report['results'][0]['requests']} requests each: {title}", fontsize=8)
            axes.set_xlabel("requests/s")
            axes.set_ylim(bottom=0)
            axes.legend(fontsize=7)
        row[2].axline((0, 0), slope=1, color="#444444", linewidth=0.8, linestyle=":")
    return figure


CHARTS: Final[dict[str, Callable[[Reports], Figure | None]]] = {
    "kernels": draw_kernels,
    "throughput": draw_throughput,
    "kv-waste": draw_kv_waste,
    "sharing": draw_sharing,
    "structured": draw_structured,
    "hosts": draw_hosts,
    "serving": draw_serving,
}


def _fractions(value: Any, label: str) -> Iterator[tuple[str, float]]:
    """(label, fraction of the limit) of everything that has one."""
    if isinstance(value, list):
        for one in value:
            yield from _fractions(one, label)
        return
    if not isinstance(value, Mapping):
        return
    own = " ".join(
        str(part)
        for key, part in value.items()
        if key in _SIZES or (isinstance(part, str) and key not in ("shape", "limit"))
    )
    label = f"{label} {own}".strip()
    share = value.get("of_limit")
    if isinstance(share, (int, float)):
        yield label, float(share)
    for key, one in value.items():
        if isinstance(one, (Mapping, list)):
            yield from _fractions(one, f"{label} {key}".strip())


def _figure(height: float = _HEIGHT) -> tuple[Figure, Axes]:
    figure, axes = pyplot.subplots(figsize=(_WIDTH, height), layout="constrained")
    return figure, axes


def _grouped_bars(axes: Axes, labels: list[str], values: list[float], number: int, count: int, label: str) -> None:
    width = 0.8 / count
    places = [index + (number - (count - 1) / 2) * width for index in range(len(labels))]
    axes.bar(places, values, width, label=label, color=_COLOURS[number % len(_COLOURS)])
    axes.set_xticks(range(len(labels)), labels, fontsize=7)


def _by(records: list[dict[str, Any]], key: str) -> dict[str, list[dict[str, Any]]]:
    groups: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        groups[record[key]].append(record)
    return dict(groups)
