"""The report as tables for a reader, in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.gpu.models import GOALS, RATIO_GOALS
from benchmarks.gpu.plan import OURS


def render(report: dict[str, Any]) -> str:
    """All of it; `report` is what the JSON file holds."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: dict[str, Any]) -> Iterator[str]:
    card, rates = report["card"], report["rates"]
    versions = ", ".join(f"{name} {version}" for name, version in card["versions"].items() if version)
    yield f"# GPU: {card['name']}, {report['machine']['date']}"
    yield f"CUDA {card['cuda']}, {versions}. Measured: {rates['bandwidth_gb_per_s']:,.0f} GB/s, "
    yield f"{rates['matmul_tflops']:,.1f} TFLOP/s of bfloat16 products."
    checks = report["checks"]
    bad = [check for check in checks if not check["good"]]
    yield f"\n## Against float64: {len(checks) - len(bad)} of {len(checks)} good\n"
    yield from _table(
        ("operation", "checks", "worst error / allowed", "bits alone = in a batch"), list(_by_operation(checks))
    )
    for check in bad:
        yield f"- **{check['operation']}**, {check['case']}: {check['problem'] or _off(check)}"
    yield "\n## Kernels\n"
    header = ("kernel", "us", "GB/s", "TFLOP/s", "of the limit", "goal")
    yield from _table(header, [_speed_row(speed) for speed in report["speeds"]])
    for name, model in report["models"].items():
        yield f"\n## {name}: output tokens a second, and of the limit\n"
        yield from _model(name, model)
    if report["skipped"]:
        yield "\n## Not measured\n"
        yield from (f"- {what}" for what in report["skipped"])


def _by_operation(checks: list[dict[str, Any]]) -> Iterator[Sequence[str]]:
    for operation in dict.fromkeys(check["operation"] for check in checks):
        own = [check for check in checks if check["operation"] == operation]
        shares = [check["error"] / check["allowed"] for check in own if check["allowed"] and check["error"] is not None]
        bits = [check["same_bits"] for check in own if check["same_bits"] is not None]
        worst = f"{max(shares):.2f}" if shares else ""
        yield operation, str(len(own)), worst, "" if not bits else f"{sum(bits)} of {len(bits)}"


def _off(check: dict[str, Any]) -> str:
    if check["same_bits"] is False:
        return "a row's bits depend on its neighbours"
    return f"off by {check['error']:.2e}, allowed {check['allowed']:.2e}"


def _speed_row(speed: dict[str, Any]) -> Sequence[str]:
    if speed["problem"] is not None:
        return speed["name"], *[""] * 4, f"not measured: {speed['problem']}"
    goal = "" if speed["goal"] is None else f"{speed['goal']}: {'yes' if speed['reached'] else 'NO'}"
    teraflops = "" if speed["teraflops"] is None else f"{speed['teraflops']:,.1f}"
    figures = (f"{speed['microseconds']:,.1f}", f"{speed['gigabytes_per_s']:,.0f}", teraflops)
    return speed["name"], *figures, f"{speed['of_limit']:.0%}", goal


def _model(name: str, model: dict[str, Any]) -> Iterator[str]:
    parts = ("one stream", "streams", "requests")
    rows = [["limit", *(f"{model['limits_tokens_per_s'][part]:,.0f}" for part in parts), "", ""]]
    for label, result in model["engines"].items():
        cells = []
        for part in parts:
            rate, share = result["tokens_per_s"][part], result["of_limit"][part]
            cells.append("" if rate is None else f"{rate:,.0f} ({share:.0%})")
        ratio = model["ours_to_theirs"].get(label, {}).get("requests")
        wanted = f" (goal {RATIO_GOALS[label]:g})" if label in RATIO_GOALS else ""
        note = "" if result["error"] is None else f"failed: {result['error'][:120]}"
        cells[-1] += f", {result['num_requests']} of them" if cells[-1] else ""
        rows.append([label, *cells, "" if ratio is None else f"{ratio:.2f} x{wanted}", note])
    yield from _table(("engine", *parts, "ours / theirs, requests", ""), rows)
    if name in GOALS:
        part, least = GOALS[name]
        reached = model["engines"].get(OURS, {}).get("of_limit", {}).get(part)
        said = "not measured" if reached is None else f"{reached:.0%}"
        yield f"\nGoal: {part} >= {least:.0%} of the limit; measured: {said}."
    for label, same in model["first_tokens_as_ours"].items():
        yield f"Greedy tokens of one stream that are ours, {label}: {same}."


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
