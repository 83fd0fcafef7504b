"""The GPU's benchmark without one: checks in Triton's interpreter, its arithmetic, and engines stood in."""

from __future__ import annotations

import json
import multiprocessing
import signal
import sys
import time
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import session as sessions
from benchmarks.gpu.budget import Budget
from benchmarks.gpu.card import Card, Rates
from benchmarks.gpu.limits import ModelLimits
from benchmarks.gpu.models import ModelRuns
from benchmarks.gpu.plan import FULL, OURS, TRIAL, VLLM, Streams, candidates
from benchmarks.gpu.session import Answered, Asked
from benchmarks.gpu.table import render
from benchmarks.models import SHAPES
from benchmarks.workloads import BenchRequest, load_workload
from paged_backend.kernels.interface import OPERATIONS

# Of what Triton's interpreter computes and throws away.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")

gpu = import_module("benchmarks.gpu.__main__")
TINY = Path(__file__).parents[2] / "model_store" / "paged-tiny"
H200 = Rates(bandwidth=4.3e12, matmul=790e12)


@pytest.mark.parametrize(
    ("name", "gigabytes", "one", "many"),
    [
        ("qwen3-0.6b", 1.19, 3438, 65.9e3),
        ("llama-3.2-1b", 2.47, 1728, 142e3),
        ("llama-3-8b", 15.0, 285, 28.9e3),
        ("llama-2-7b", 13.2, 319, 12.6e3),
    ],
)
def test_limits_of_known_models(name: str, gigabytes: float, one: float, many: float) -> None:
    """As worked out by hand for an H200."""
    limits = ModelLimits.of(SHAPES[name].config(), H200)
    assert 2 * limits.num_parameters / 1e9 == pytest.approx(gigabytes, rel=0.005)
    assert limits.decode_rate(1, 512) == pytest.approx(one, rel=0.005)
    assert limits.decode_rate(256, 512) == pytest.approx(many, rel=0.005)


def test_the_limit_of_a_workload() -> None:
    """Step by step, sequence by sequence."""
    limits = ModelLimits(1000, 64, Rates(bandwidth=1e6, matmul=3e5))
    lengths = [(5, 1), (3, 4), (7, 2), (2, 4)]
    seconds = max(2000 / 1e6, 2000 * 17 / 3e5)
    for step in range(1, 4):
        contexts = [prompt + step for prompt, output in lengths if output > step]
        seconds += max(2000 / 1e6, 2000 * len(contexts) / 3e5) + sum(contexts) * 64 / 1e6
    assert limits.workload_rate(lengths) == pytest.approx(11 / seconds)


def test_sharegpts_lengths() -> None:
    workload = load_workload("sharegpt-1000", 5000)
    assert workload.num_prompt_tokens == pytest.approx(161_000, rel=0.001)
    assert workload.num_output_tokens == pytest.approx(338_000, rel=0.001)
    lengths = [(len(request.prompt_token_ids), request.num_output_tokens) for request in workload.requests]
    prompts, outputs = torch.tensor(lengths, dtype=torch.float64).log().T
    assert float(prompts.std()) > 0.8 and float(outputs.std()) > 0.8
    assert abs(float(torch.corrcoef(torch.stack((prompts, outputs)))[0, 1])) < 0.1
    assert workload == load_workload("sharegpt-1000", 5000)


def test_streams_are_timed_without_their_prompts() -> None:
    streams = Streams(10, 101)
    assert streams.num_prompt + streams.num_outputs / 2 == pytest.approx(512, abs=1)
    short, whole = streams.workloads
    assert streams.rate({short: 3.0, whole: 5.0}) == pytest.approx(500)
    assert streams.rate({whole: 5.0}) is None and streams.rate({short: 3.0, whole: 2.0}) is None


def _answer(requests: list[BenchRequest]) -> list[list[int]]:
    """The last token of the prompt, again and again."""
    return [request.prompt_token_ids[-1:] * request.num_output_tokens for request in requests]


def _stand_in(asked: Asked, timeout_s: float) -> Answered:
    """An engine that needs no time; vLLM's breaks down."""
    assert timeout_s > 0
    kept = [Answered()]

    def keep(answered: Answered) -> None:
        kept.append(replace(answered, seconds=dict(answered.seconds)))

    sessions.measure(asked, lambda asked: (_answer, {asked.engine: "1"}), keep)
    lengths = {name: sum(request.num_output_tokens for request in asked.requests(name)) for name in asked.workloads}
    seconds = {name: length / 1000 for name, length in lengths.items()}
    return replace(
        kept[-1], seconds=seconds, error="Traceback\nin /some/folder\nit broke" if asked.engine == VLLM else None
    )


def test_the_whole_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every operation is right in the interpreter, and the report says all that was found."""
    output = tmp_path / "gpu.json"
    monkeypatch.setattr(gpu, "run_session", _stand_in)
    monkeypatch.setattr(sys, "argv", ["gpu", "--dry-run", "--output", str(output)])
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(gpu, "SPEEDS_SHARE", 0.01)  # a few of them will do
    gpu.main()
    report = json.loads(output.read_text())
    assert {check["operation"] for check in report["checks"]} == set(OPERATIONS)
    assert all(check["good"] for check in report["checks"]) and len(report["checks"]) > 30
    assert report["speeds"] and not [speed for speed in report["speeds"] if speed["problem"]]
    assert report["machine"]["date"] and report["card"]["versions"]["torch"]
    (model,) = report["models"].values()
    rates = model["engines"][OURS]["tokens_per_s"]
    assert rates == pytest.approx({"one stream": 1000, "streams": 1000, "requests": 1000})
    said = capsys.readouterr().out
    assert "35 of 35 good" in said and "| limit |" in said
    assert json.loads(said.splitlines()[-1]) == report | {"machine": json.loads(said.splitlines()[-1])["machine"]}


@pytest.fixture
def runs() -> ModelRuns:
    return ModelRuns("llama-3-8b", TINY, H200, TRIAL)


def test_engines_beside_each_other(runs: ModelRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a card; one engine fails after its work, another is not installed."""
    ours, vllm, *others = candidates(TRIAL, "cuda")
    budget = Budget(1000)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    runs.run(vllm, budget, _stand_in)
    assert budget.skipped == ["llama-3-8b, vLLM: the package vllm is not installed"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    for candidate in (ours, vllm, *others):
        runs.run(candidate, budget, _stand_in)
    model = runs.report()
    assert model["ours_to_theirs"][VLLM]["requests"] == pytest.approx(1.0, rel=0.01)
    assert model["engines"][VLLM]["error"] == "it broke", "nothing that names folders"
    assert model["first_tokens_as_ours"][VLLM] == "4 of 4"
    assert model["engines"]["transformers generate"]["num_requests"] == TRIAL.num_static
    report: dict[str, Any] = {
        "card": Card("cpu").describe(),
        "machine": {"date": "today"},
        "rates": {"bandwidth_gb_per_s": 4300.0, "matmul_tflops": 790.0},
        "checks": [],
        "speeds": [],
        "models": {"llama-3-8b": model},
        "skipped": budget.skipped,
    }
    text = render(report)
    for words in ("(goal 24)", "failed: it broke", "Goal: one stream >= 70%", "not installed", "enforce_eager"):
        assert words in text


def test_no_time_is_said(runs: ModelRuns) -> None:
    now = [0.0]
    budget = Budget(100, lambda: now[0])
    part = budget.part(0.2)
    assert part.allows("first") and part.left_s == 20
    now[0] = 21.0
    assert not part.allows("second") and budget.left_s == 79
    now[0] = 90.0
    runs.run(candidates(TRIAL, "cuda")[0], budget, _stand_in)
    assert budget.skipped == ["second: no time was left", "llama-3-8b, paged-backend: no time was left"]
    assert runs.answers == {}


def test_what_was_measured_before_the_time_ran_out_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_process(command: list[str], timeout_s: float) -> None:
        question, answer = map(Path, command[-2:])
        assert Asked(**json.loads(question.read_text())).engine == OURS
        answer.write_text(json.dumps(asdict(Answered(seconds={"fixed-1x2x3": 4.0}))))
        raise RuntimeError(f"not done after {timeout_s} s")

    monkeypatch.setattr(sessions, "run_process", run_process)
    asked = Asked(OURS, "folder", {}, ("fixed-1x2x3",), {}, 100, 100)
    answered = sessions.run_session(asked, 7)
    assert answered.seconds == {"fixed-1x2x3": 4.0} and answered.error == "not done after 7 s"


def test_answers_of_a_wrong_length_do_not_count() -> None:
    asked = Asked(OURS, "folder", {}, ("fixed-1x2x3",), {}, 100, 100)
    with pytest.raises(RuntimeError, match="did not give as many tokens"):
        sessions.measure(asked, lambda asked: (lambda requests: [[1]] * len(requests), {}), lambda answered: None)


def test_an_engines_processes_end_with_it() -> None:
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    child.start()
    sessions.end_children()
    assert child.exitcode == -signal.SIGKILL


def test_real_engines_agree() -> None:
    """Ours and transformers' as the sessions start them, on the bundled model."""
    engines = import_module("benchmarks.gpu.engines")
    assert {candidate.engine for candidate in candidates(FULL, "cuda")} == set(engines.ENGINES)
    tokens = []
    for candidate in candidates(TRIAL, "cpu")[:2]:
        asked = Asked(candidate.engine, str(TINY), candidate.settings, ("fixed-2x9x5",), {}, 2560, 64)
        kept: list[Answered] = []
        sessions.measure(asked, engines.ENGINES[candidate.engine], kept.append)
        tokens.append(kept[-1].first_tokens["fixed-2x9x5"])
        assert kept[-1].seconds["fixed-2x9x5"] > 0 and kept[-1].versions
    assert tokens[0] == tokens[1] and len(tokens[0]) == 5


def test_wrong_kernels_are_found() -> None:
    """Numbers that are off, and rows that look at their neighbours."""
    checks = import_module("benchmarks.gpu.checks")

    class Wrong:
        def __init__(self, of_batch: float, off: float) -> None:
            self.of_batch, self.off = of_batch, off

        def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
            exact = torch.nn.functional.rms_norm(x, x.shape[-1:], weight, eps)
            return exact * (1 + self.of_batch * len(x)) + self.off

    def verdict(kernels: Any) -> Any:
        run = lambda: checks._norm(kernels, torch.device("cpu"), torch.float32, "rms_norm", checks.TRIAL)  # noqa: E731
        return checks.run_check("rms_norm", "", run)

    assert verdict(Wrong(0.0, 0.0)).good
    assert not verdict(Wrong(0.0, 1e-3)).good
    near = verdict(Wrong(3e-6, 0.0))
    assert near.error < near.allowed and near.same_bits is False and not near.good
    assert "AttributeError" in verdict(None).problem and not verdict(None).good


def test_no_gpu_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
