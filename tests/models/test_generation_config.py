"""generation_config.json: its defaults, what overrides them, and whom they reach."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paged_backend import LLM, ConfigError, ModelLoadError, SamplingParams
from paged_backend.config import ModelConfig
from paged_backend.models.generation_config import read_generation_config
from tests.tiny_models import make_tiny_model

STORED = {
    "do_sample": True,
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.95,
    "min_p": None,
    "repetition_penalty": 1.1,
    "max_new_tokens": 30,
    "eos_token_id": [1, 7],
    "transformers_version": "5.0.0",
}
SAMPLING = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.1, "max_tokens": 30}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_model("llama", tmp_path_factory.mktemp("llama"), tokenizer=True)
    (folder / "generation_config.json").write_text(json.dumps(STORED))
    return folder


def read(folder: Path, **arguments: Any) -> tuple[dict[str, Any], set[int]]:
    found = read_generation_config(ModelConfig(model=str(folder), **arguments), folder)
    return dict(found.sampling), set(found.eos_token_ids)


def test_where_defaults_come_from(folder: Path, tmp_path: Path) -> None:
    assert read(folder) == (SAMPLING, {1, 7})
    assert read(folder, generation_config="vllm") == ({}, {1, 7})
    (tmp_path / "generation_config.json").write_text(json.dumps({"top_p": 0.5, "eos_token_id": 9}))
    assert read(folder, generation_config=str(tmp_path)) == ({"top_p": 0.5}, {9})
    assert read(tmp_path / "none") == ({}, set())
    overrides = {"temperature": 0.1, "max_new_tokens": 5}
    assert read(folder, override_generation_config=overrides)[0] == {**SAMPLING, "temperature": 0.1, "max_tokens": 5}
    as_json = '{"temperature": 0.1}'
    assert read(folder, generation_config="vllm", override_generation_config=as_json)[0] == {"temperature": 0.1}


@pytest.mark.parametrize(
    "arguments",
    [
        {"generation_config": "/nowhere"},
        {"override_generation_config": {"temprature": 1}},
        {"override_generation_config": {"temperature": -1}},
        {"override_generation_config": {"top_k": "all"}},
        {"override_generation_config": "{"},
        {"override_generation_config": [1]},
    ],
    ids=str,
)
def test_wrong_configurations_are_named(folder: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        read(folder, **arguments)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    for wrong in ({"temperature": "hot"}, {"top_p": 2}, {"eos_token_id": "x"}):
        (tmp_path / "generation_config.json").write_text(json.dumps(wrong))
        with pytest.raises(ModelLoadError, match=rf"generation_config.json has a wrong value: {next(iter(wrong))}"):
            read(tmp_path)


def test_python_gets_them_where_it_gives_nothing(folder: Path) -> None:
    with LLM(model=str(folder), num_threads=1) as llm:
        assert llm.get_default_sampling_params() == SamplingParams(**SAMPLING)  # type: ignore[arg-type]
        (default,) = llm.generate([[5, 6]], use_tqdm=False)
        (explicit,) = llm.generate([[5, 6]], SamplingParams(ignore_eos=True), use_tqdm=False)
        assert len(default.outputs[0].token_ids) <= 30 and len(explicit.outputs[0].token_ids) == 16
    with LLM(model=str(folder), num_threads=1, generation_config="vllm") as llm:
        assert llm.get_default_sampling_params() == SamplingParams()
