"""Two models in one deployment, on both live hosts: one archive, one service."""

from __future__ import annotations

from typing import Any

import httpx

from tests.serving.conftest import Host

GREEDY: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 12, "temperature": 0, "ignore_eos": True}


def complete(host: Host, **fields: Any) -> httpx.Response:
    return httpx.post(f"{host.url}/v1/completions", json={**GREEDY, **fields}, timeout=60)


def test_each_answers_under_its_names(each_host: Host) -> None:
    answers = {name: complete(each_host, model=name).json() for name in ("paged-tiny", "second", "alias")}
    assert all(answer["model"] == name for name, answer in answers.items())
    assert len({answer["choices"][0]["text"] for answer in answers.values()}) == 1  # they are of one kind
    assert complete(each_host).json()["model"] == "paged-tiny"
    assert complete(each_host, model="third").status_code == 404


def test_each_has_its_own_engine(each_host: Host) -> None:
    data = httpx.get(f"{each_host.url}/v1/models", timeout=30).json()["data"]
    assert [(model["id"], model["root"]) for model in data] == [
        ("paged-tiny", "paged-tiny"),
        ("second", "second"),
        ("alias", "second"),
    ]
    assert data[1]["max_model_len"] == data[2]["max_model_len"] == 100 < data[0]["max_model_len"]
    refused = complete(each_host, model="alias", max_tokens=200)
    assert refused.status_code == 400 and "maximum context length is 100 tokens" in refused.json()["error"]["message"]
    assert complete(each_host, model="paged-tiny", max_tokens=200).status_code == 200


def test_metrics_are_of_both(each_host: Host) -> None:
    def generated(name: str) -> float:
        return each_host.metric("vllm:generation_tokens_total", model_name=name)

    before = generated("paged-tiny"), generated("second")
    assert complete(each_host, model="alias").status_code == 200
    each_host.wait_idle(timeout_s=30)
    assert (generated("paged-tiny"), generated("second")) == (before[0], before[1] + 12)
    text = httpx.get(f"{each_host.url}/metrics", timeout=30).text
    types = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")]
    assert len(types) == len(set(types))


def test_bentomls_native_api_chooses_too(both_hosts: dict[str, Host]) -> None:
    url = f"{both_hosts['bentoml'].url}/generate"

    def generate(**fields: Any) -> httpx.Response:
        return httpx.post(url, json={**GREEDY, "max_tokens": 200, **fields}, timeout=60)

    assert len(generate().json()["outputs"][0]["token_ids"]) == 200
    long = generate(model="alias")
    assert long.status_code == 400 and "maximum context length is 100 tokens" in long.json()["error"]["message"]
    assert len(generate(model="alias", max_tokens=20).json()["outputs"][0]["token_ids"]) == 20
    unknown = generate(model="third")
    assert unknown.status_code == 404 and unknown.json()["error"]["param"] == "model"
    many = generate(n=129)
    assert many.status_code == 400 and many.json()["error"]["param"] == "n"
