"""The parts of the peers' benchmark that need no peer."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.models import SHAPES
from benchmarks.peers.candidates import BEST, RUNNERS, SWEEP, Candidate
from benchmarks.peers.compare import Difference, first_differences
from benchmarks.peers.contract import Job, Outcome, read_outcome
from benchmarks.workloads import FIRST_PLAIN_ID, BenchRequest, load_workload

RUNNERS_FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "peers" / "runners"


def test_lognormal_workload_is_the_same_every_time() -> None:
    workload = load_workload("lognormal-48", vocab_size=1000)
    assert (len(workload.requests), workload.num_prompt_tokens, workload.num_output_tokens) == (48, 7191, 6661)
    assert workload.max_model_len == 809
    assert workload == load_workload("lognormal-48", vocab_size=1000)
    assert all(FIRST_PLAIN_ID <= token < 1000 for request in workload.requests for token in request.prompt_token_ids)


def test_fixed_and_unknown_workloads() -> None:
    workload = load_workload("fixed-3x5x7", vocab_size=100)
    assert [(len(request.prompt_token_ids), request.num_output_tokens) for request in workload.requests] == [(5, 7)] * 3
    assert len(workload.first(2).requests) == 2
    with pytest.raises(ValueError, match="lognormal-48"):
        load_workload("lognormal-49", vocab_size=100)


def test_shapes_have_their_numbers_of_parameters() -> None:
    parameters = {}
    for name, shape in SHAPES.items():
        parameters[name] = 0
        for _, size in shape.weights():
            parameters[name] += size[0] * (size[1] if len(size) > 1 else 1)
    assert parameters == {
        "smollm2-135m": 134_515_008,
        "qwen3-0.6b": 596_049_920,
        "llama-3.2-1b": 1_235_814_400,
        "llama-3-8b": 8_030_261_248,
        "llama-2-7b": 6_738_415_616,
    }


def test_first_differences() -> None:
    assert first_differences([[1, 2, 3], [4, 5]], [[1, 2, 3], [4, 6]]) == [Difference(1, 1, (5, 6))]


def test_short_answers_do_not_count(tmp_path: Path) -> None:
    job = Job("model", {}, [BenchRequest([1, 2], 3), BenchRequest([1], 1)], num_threads=1)
    file = tmp_path / "outcome.json"
    file.write_text(json.dumps({"seconds": 1.0, "output_token_ids": [[7, 8], [9]]}))
    with pytest.raises(ValueError, match=r"wrong lengths in requests \[0\]"):
        read_outcome(file, job)
    file.write_text(json.dumps({"seconds": 1.0, "output_token_ids": [[7, 8, 9], [9]]}))
    assert read_outcome(file, job).output_token_ids == [[7, 8, 9], [9]]


@pytest.mark.parametrize("candidates", [BEST, SWEEP], ids=["best", "sweep"])
def test_every_candidate_has_a_runner_and_a_name_of_its_own(candidates: tuple[Candidate, ...]) -> None:
    labels = [candidate.label for candidate in candidates]
    assert len(set(labels)) == len(labels)
    assert all((RUNNERS_FOLDER / f"{RUNNERS[candidate.engine]}.py").is_file() for candidate in candidates)


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        ([], "docs/benchmarks/peers.json"),
        (["--limit", "4"], "build/bench/peers.json"),
        (["--sweep"], "build/bench/peers-sweep.json"),
    ],
)
def test_only_whole_results_are_kept_in_docs(
    arguments: list[str], output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = import_module("benchmarks.peers.__main__")
    monkeypatch.setattr(sys, "argv", ["peers", *arguments])
    args = peers._arguments()
    assert args.output == peers.ROOT / output and args.chart == args.output.with_suffix(".png")


@pytest.mark.parametrize("fails", [False, True])
def test_a_failed_peer_is_a_failure(fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peers = import_module("benchmarks.peers.__main__")
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 1000}))

    def run(bench: object, candidate: Candidate) -> Outcome:
        if fails and candidate.engine != peers.OURS:
            raise RuntimeError("it is not installed")
        return Outcome(2.0, [], 2.0, {})

    monkeypatch.setattr(peers.Bench, "_run", run)
    monkeypatch.setattr(peers, "_compare", lambda bench, entries: {})
    monkeypatch.setattr(peers, "_draw", lambda report, file: None)
    output = tmp_path / "peers.json"
    only = ["--only", "int8 weights", "Q8_0"]
    monkeypatch.setattr(sys, "argv", ["peers", "--model", str(tmp_path), "--output", str(output), *only])
    if fails:
        with pytest.raises(SystemExit, match="llama"):
            peers.main()
    else:
        peers.main()
    report = json.loads(output.read_text())
    assert [result["engine"] for result in report["results"] if result["error"]] == ["llama.cpp server"] * fails
