"""Whether engines did the same work: greedy tokens, request by request.

Two float32 engines sum in different orders, so their logits differ by about 1e-5, and where the two best tokens are
closer than that either may win; from there on the answers go apart for good. So the first difference of a request is
looked at: `judge` lays the text before it before transformers in float64 and asks by how much the token that was
chosen loses to the best.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.peers.tools import ROOT, PeerTools
from benchmarks.workloads import BenchRequest

NEAR_TIE: Final = 1e-3  # logits; they have a standard deviation of 2.4
MAX_JUDGED: Final = 48
JUDGE_TIMEOUT_S: Final = 1800.0


@dataclass(frozen=True)
class Difference:
    """The first token at which an answer leaves the reference's.

    Attributes:
        request: its number in the workload.
        position: counted in output tokens from 0.
        token_ids: the reference's token and the other's.
    """

    request: int
    position: int
    token_ids: tuple[int, int]


def first_differences(reference: list[list[int]], other: list[list[int]]) -> list[Difference]:
    """One for each request whose answers differ."""
    found = []
    for index, (ours, theirs) in enumerate(zip(reference, other, strict=True)):
        for position, pair in enumerate(zip(ours, theirs, strict=True)):
            if pair[0] != pair[1]:
                found.append(Difference(index, position, pair))
                break
    return found


def judge(
    model: Path,
    requests: list[BenchRequest],
    reference: list[list[int]],
    differences: list[Difference],
    tools: PeerTools,
) -> list[tuple[float, float]]:
    """By how much the reference's and the other's token lose to the best one, in float64 logits, per difference."""
    cases = [
        {
            "token_ids": requests[difference.request].prompt_token_ids
            + reference[difference.request][: difference.position],
            "choices": difference.token_ids,
        }
        for difference in differences
    ]
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "cases.json", Path(folder) / "gaps.json"
        asked.write_text(json.dumps({"model": str(model), "cases": cases}))
        command = [str(tools.python), "-m", "benchmarks.peers.runners.judge", str(asked), str(answered)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=JUDGE_TIMEOUT_S)
        return [(first, second) for first, second in json.loads(answered.read_text())]


def describe(
    model: Path,
    requests: list[BenchRequest],
    reference: list[list[int]],
    other: list[list[int]],
    tools: PeerTools | None,
) -> dict[str, Any]:
    """The comparison as it goes into the report; `tools` None leaves the judge out."""
    differences = first_differences(reference, other)
    report: dict[str, Any] = {
        "requests": len(reference),
        "equal_requests": len(reference) - len(differences),
        "first_differences": [[difference.request, difference.position] for difference in differences],
    }
    if tools is not None:
        judged = differences[:MAX_JUDGED]
        gaps = judge(model, requests, reference, judged, tools) if judged else []
        lost = [max(pair) for pair in gaps]
        report["logits_lost_at_first_difference"] = [float(f"{loss:.2g}") for loss in lost]
        report["all_near_ties"] = all(loss < NEAR_TIE for loss in lost)
    return report
