"""lm-evaluation-harness: its client of ours scores a model as its own transformers backend does.

`make eval` installs it, in an environment of its own, and runs this. `tasks/` has choices, whose likelihoods are asked
for by echo and logprobs, texts for their perplexity, and questions with answers that are generated.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paged_backend.models.folder import resolve_folder
from tests.serving.bento_host import BentoHost

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
HARNESS = ROOT / ".venv-eval" / "bin" / "lm_eval"
TASKS = Path(__file__).parent / "tasks"
NAMES = ("paged_answers", "paged_opposites", "paged_stories")
TIMEOUT_S = 400


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BentoHost]:
    if not HARNESS.exists():
        pytest.skip("lm-evaluation-harness is not installed: make eval installs it, and runs this")
    deployment = {"engine": {"model": "paged-tiny", "dtype": "float32", "num_threads": 1}}
    with BentoHost(tmp_path_factory.mktemp("bento"), deployment) as host:
        host.wait_ready()
        yield host


def evaluate(folder: Path, backend: str, **arguments: Any) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """The harness's results by task, and its samples."""
    folder.mkdir()
    model_args = ",".join(f"{name}={value}" for name, value in arguments.items())
    command = [str(HARNESS), "run", "--model", backend, "--model_args", model_args]
    command += ["--device", "cpu", "--tasks", *NAMES, "--include_path", str(TASKS)]
    command += ["--output_path", str(folder), "--log_samples"]
    environment = {**os.environ, "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    ran = subprocess.run(command, cwd=TASKS, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    (results,) = folder.rglob("results_*.json")
    samples = {}
    for name in NAMES:
        (file,) = folder.rglob(f"samples_{name}_*.jsonl")
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        samples[name] = sorted(lines, key=lambda line: line["doc_id"])
    return json.loads(results.read_text(encoding="utf-8"))["results"], samples


def scores(results: dict[str, Any]) -> dict[str, float]:
    """The figures alone: "task metric" to value."""
    return {
        f"{task} {metric}": value
        for task, metrics in results.items()
        for metric, value in metrics.items()
        if isinstance(value, float)
    }


def test_scores_as_its_own_backend(host: BentoHost, tmp_path: Path) -> None:
    folder = resolve_folder("paged-tiny")
    theirs, their_samples = evaluate(tmp_path / "hf", "hf", pretrained=folder, dtype="float32")
    ours, our_samples = evaluate(
        tmp_path / "ours",
        "local-completions",
        model="paged-tiny",
        base_url=f"{host.url}/v1/completions",
        tokenizer=folder,
        tokenizer_backend="huggingface",
        num_concurrent=4,
        max_retries=1,
    )
    print(json.dumps({"transformers": scores(theirs), "ours": scores(ours)}, indent=2))
    assert scores(theirs).keys() == scores(ours).keys()
    for name, value in scores(ours).items():
        assert value == pytest.approx(scores(theirs)[name], rel=1e-5), name
    for name in NAMES:
        for their, our in zip(their_samples[name], our_samples[name], strict=True):
            compare(name, their["filtered_resps"], our["filtered_resps"])


def compare(name: str, theirs: list[Any], ours: list[Any]) -> None:
    """Generated texts are the same, likelihoods within float32's rounding, and the greedy ones are the same ones."""
    if name == "paged_answers":
        assert theirs == ours
        return
    if name == "paged_opposites":
        assert [greedy for _, greedy in theirs] == [greedy for _, greedy in ours]
        theirs, ours = ([value for value, _ in one] for one in (theirs, ours))
    assert [float(value) for value in ours] == pytest.approx([float(value) for value in theirs], rel=1e-5, abs=1e-5)
