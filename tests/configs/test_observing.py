"""The dashboard and the scrape configuration, against what an engine exposes after real requests."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from paged_backend.config import EngineConfig
from paged_backend.engine.client import EngineClient
from paged_backend.handlers.access.gate import Gate
from paged_backend.handlers.access.limits import KeyLimits
from paged_backend.handlers.bento import launch as bento
from paged_backend.handlers.deployment import Deployment
from paged_backend.handlers.openai.served_models import ServedModels
from paged_backend.handlers.openai.service import HttpRequest, OpenAIService
from paged_backend.handlers.torchserve import config_files as torchserve
from paged_backend.sampling_params import SamplingParams

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((ROOT / "configs" / "grafana-dashboard.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [(panel["title"], target) for panel in PANELS for target in panel["targets"]]
SCRAPER_LABELS = {"job", "instance"}
"""Prometheus adds them to what it reads."""

Exposed = dict[str, set[str]]
"""Names of samples, with their labels."""


@pytest.fixture(scope="module")
def exposed() -> Iterator[Exposed]:
    """What /metrics has, and nothing more, after requests of some kinds."""
    client = EngineClient.start(
        EngineConfig.from_args(
            num_threads=1,
            max_model_len=512,
            num_gpu_blocks_override=40,
            kv_offloading_size=0.01,
            kv_cache_metrics=True,
            kv_cache_metrics_sample=1.0,
        )
    )
    params = SamplingParams(max_tokens=8, ignore_eos=True, n=2)
    for prompt in (list(range(5, 200)), list(range(200, 400)), list(range(5, 200))):
        client.submit(prompt, params).collect()
    gate = Gate(limits={"default": KeyLimits(requests_per_minute=1)})
    service = OpenAIService(ServedModels.one(client, ("tiny",)), gate=gate)
    bodies = [HttpRequest("/v1/completions", body={"prompt": "x", "max_tokens": 1})] * 2
    assert [asyncio.run(service.handle(request)).status for request in bodies] == [200, 429]
    samples: Exposed = {}
    for family in text_string_to_metric_families(service.metrics_text()):
        for sample in family.samples:
            samples.setdefault(sample.name, set()).update(sample.labels)
            if sample.name == "vllm:kv_block_lifetime_seconds_count":
                assert sample.value > 0, "blocks were overwritten"
    yield samples
    client.shutdown()


def parse(expression: str) -> Any:
    """A query as Prometheus gets it: Grafana has put its own values in."""
    return promql_parser.parse(re.sub(r"\$__\w+", "1m", expression))


def inner(node: Any) -> Iterator[Any]:
    """An expression and all that it is made of."""
    yield node
    for name in ("lhs", "rhs", "expr", "vector_selector"):
        if getattr(node, name, None) is not None:
            yield from inner(getattr(node, name))
    for argument in getattr(node, "args", ()):
        yield from inner(argument)


def selectors(expression: str) -> list[Any]:
    return [node for node in inner(parse(expression)) if isinstance(node, promql_parser.VectorSelector)]


def test_the_parser_sees_every_metric() -> None:
    """One that overlooks some would let anything pass."""
    found = selectors(
        'sum by (a) (rate(x_total{b=~"$b"}[$__rate_interval])) / on (a) max(y) + histogram_quantile(1, z)'
    )
    assert [selector.name for selector in found] == ["x_total", "y", "z"]
    assert [matcher.name for matcher in found[0].matchers.matchers] == ["b"]


@pytest.mark.parametrize(("title", "target"), TARGETS, ids=[f"{t}-{x['refId']}" for t, x in TARGETS])
def test_a_query_asks_for_what_there_is(exposed: Exposed, title: str, target: dict[str, Any]) -> None:
    found = selectors(target["expr"])
    assert found
    labels = set(SCRAPER_LABELS)
    for selector in found:
        assert selector.name in exposed, f"{title}: nothing exposes {selector.name}"
        own = exposed[selector.name] | SCRAPER_LABELS
        assert {matcher.name for matcher in selector.matchers.matchers} <= own, selector.name
        labels |= own
    kept: set[str] = set()
    for node in inner(parse(target["expr"])):
        if isinstance(node, promql_parser.AggregateExpr):
            assert node.modifier is not None, f"{title}: models are summed up"
            assert set(node.modifier.labels) <= labels, title
            kept.update(node.modifier.labels)
    assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= kept, title


def test_variables_ask_for_what_there_is(exposed: Exposed) -> None:
    used = set(re.findall(r"\$(?!__)(\w+)", " ".join(target["expr"] for _, target in TARGETS)))
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert used | {"datasource"} == set(variables)
    for name in used:
        metric, label = re.fullmatch(r"label_values\(([\w:]+), (\w+)\)", variables[name]["definition"]).groups()
        assert label in exposed[metric] | SCRAPER_LABELS


def test_every_metric_has_its_place(exposed: Exposed) -> None:
    shown = {selector.name for _, target in TARGETS for selector in selectors(target["expr"])}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exposed if not name.endswith("_created")}
    assert names - shown == {"vllm:num_requests_waiting"}, "which is shown by reason"


def test_the_dashboard_is_well_formed() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
    assert all(target["datasource"]["uid"] == "${datasource}" for _, target in TARGETS)


def test_prometheus_looks_where_the_hosts_are() -> None:
    config = yaml.safe_load((ROOT / "configs" / "prometheus.yaml").read_text(encoding="utf-8"))
    assert set(config) == {"global", "scrape_configs"} and set(config["global"]) == {"scrape_interval"}
    urls = {}
    for job in config["scrape_configs"]:
        assert set(job) == {"job_name", "metrics_path", "static_configs"}
        ((target,),) = [entry["targets"] for entry in job["static_configs"]]
        urls[job["job_name"]] = f"http://{target}{job['metrics_path']}"
    deployment = Deployment.load(ROOT / "configs" / "paged-tiny.yaml", environ={})
    assert urls == {
        "paged-backend-bentoml": f"http://{deployment.server.host}:{bento.DEFAULT_PORT}/metrics",
        "paged-backend-torchserve": f"{torchserve.base_url(deployment)}/metrics",
        "torchserve": f"http://127.0.0.1:{deployment.torchserve.metrics_port}/metrics",
    }
    assert all(urlsplit(url).port for url in urls.values())


def test_the_table_of_metrics_tells_the_truth(exposed: Exposed) -> None:
    text = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(vllm:\w+)` \| ([^|]+) \|", text, re.MULTILINE))
    names = {re.sub(r"(_total)?(_bucket|_sum|_count)?$", "", name) for name in exposed if not name.endswith("_created")}
    names = {"vllm:iteration_tokens_total" if name == "vllm:iteration_tokens" else name for name in names}
    assert {name for name, what in rows.items() if what.strip() != "no"} == names
