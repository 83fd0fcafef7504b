"""What a model's generation_config.json says reaches requests over HTTP that leave it out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paged_backend.config import EngineConfig
from paged_backend.engine.client import EngineClient
from paged_backend.handlers.openai.served_models import ServedModels
from paged_backend.handlers.openai.service import OpenAIService
from tests.tiny_models import make_tiny_model

STORED = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.1, "max_new_tokens": 30}
SAMPLING = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.1, "max_tokens": 30}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_model("llama", tmp_path_factory.mktemp("llama"), tokenizer=True)
    (folder / "generation_config.json").write_text(json.dumps(STORED))
    return folder


def test_requests_over_http_get_what_they_leave_out(call: Any, client: Any) -> None:
    client.default_sampling_params = dict(SAMPLING)
    for path, content in (
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    ):
        client.submissions.clear()
        for fields in (
            {},
            {"temperature": 1.0, "top_k": 0, "max_tokens": 40},
            {"max_tokens": 4},
            {"use_beam_search": True},
        ):
            assert call(path, {**content, **fields}).status == 200
        plain, own, few, beams = (each["params"] for each in client.submissions)
        assert (plain.temperature, plain.top_k, plain.top_p, plain.repetition_penalty) == (0.6, 20, 0.95, 1.1)
        assert plain.max_tokens == (16 if "completions" in path.split("/")[2] else 30)
        assert (own.temperature, own.top_k, own.top_p, own.max_tokens) == (1.0, 0, 0.95, 30)
        assert few.max_tokens == 4
        assert (beams.temperature, beams.top_k, beams.repetition_penalty) == (0.0, 0, 1.0)


def test_they_change_what_is_drawn(call: Any, folder: Path) -> None:
    body = {"prompt": [5, 6, 7], "seed": 3, "ignore_eos": True, "return_token_ids": True}
    drawn = {}
    for name, arguments in (("auto", {}), ("vllm", {"generation_config": "vllm"})):
        engine = EngineClient.start(EngineConfig.from_args(model=str(folder), num_threads=1, **arguments))
        try:
            served = OpenAIService(ServedModels.one(engine, ("m",)))
            fields = {} if name == "auto" else {key: SAMPLING[key] for key in SAMPLING if key != "max_tokens"}
            drawn[name] = call("/v1/completions", {**body, **fields}, service=served).json["choices"][0]["token_ids"]
            drawn[f"{name}, plain"] = call(
                "/v1/completions",
                {**body, "temperature": 1, "top_k": 0, "top_p": 1, "repetition_penalty": 1},
                service=served,
            ).json["choices"][0]["token_ids"]
        finally:
            engine.shutdown()
    assert drawn["auto"] == drawn["vllm"] != drawn["auto, plain"] == drawn["vllm, plain"]
