"""Several models behind one service: each request goes to its own, and what is asked of the server is asked of all."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from paged_backend.config import EngineConfig
from paged_backend.engine.metrics import EngineMetrics
from paged_backend.engine.stats import EngineStats
from paged_backend.errors import EngineUnavailableError, ModelLoadError
from paged_backend.handlers.access.gate import Gate
from paged_backend.handlers.access.limits import KeyLimits
from paged_backend.handlers.engine_group import EngineGroup
from paged_backend.handlers.openai.served_models import ServedModel, ServedModels, merge_expositions
from paged_backend.handlers.openai.service import OpenAIService
from tests.handlers.openai.conftest import FakeClient

MESSAGES = [{"role": "user", "content": "x"}]


@pytest.fixture
def clients() -> tuple[FakeClient, FakeClient]:
    return FakeClient(text="one"), FakeClient(text="two", max_model_len=50)


@pytest.fixture
def models(clients):
    return ServedModels([ServedModel(clients[0], ("a", "alias")), ServedModel(clients[1], ("org/b",))])


@pytest.fixture
def both(models):
    return OpenAIService(models)


@pytest.mark.parametrize(("name", "text", "served"), [("a", "one", 0), ("alias", "one", 0), ("org/b", "two", 1)])
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_goes_to_the_model_that_it_names(call, both, clients, name, text, served, stream):
    for path, fields in (("/v1/completions", {"prompt": "x"}), ("/v1/chat/completions", {"messages": MESSAGES})):
        reply = call(path, {"model": name, "stream": stream, **fields}, service=both)
        assert reply.status == 200 and text[0].encode() in reply.body
        bodies = reply.chunks if stream else [reply.json]
        assert {body["model"] for body in bodies} == {name}
    assert [len(client.submissions) for client in clients] == [2 * (served == 0), 2 * (served == 1)]
    assert call("/tokenize", {"model": name, "prompt": "x"}, service=both).json["max_model_len"] == (100, 50)[served]


def test_one_without_a_name_goes_to_the_first(call, both, clients):
    assert call("/v1/completions", {"prompt": "x"}, service=both).json["model"] == "a"
    assert clients[0].submissions and not clients[1].submissions


@pytest.mark.parametrize("name", ["b", "", "../b", "/etc/passwd", "A"])
def test_no_such_model(call, both, clients, name):
    reply = call("/v1/completions", {"model": name, "prompt": "x"}, service=both)
    assert reply.status == 404 and reply.error["param"] == "model"
    assert not clients[0].submissions and not clients[1].submissions


def test_the_list_of_models(call, both):
    data = call("/v1/models", method="GET", service=both).json["data"]
    assert [(one["id"], one["root"], one["max_model_len"]) for one in data] == [
        ("a", "a", 100),
        ("alias", "a", 100),
        ("org/b", "org/b", 50),
    ]
    assert call("/v1/models/org/b", service=both).json == data[2]
    assert call("/v1/models/c", service=both).status == 404


def test_one_failed_engine_fails_the_health_of_all_and_is_named(call, both, clients):
    assert call("/health", service=both).status == 200
    clients[1].health_error = EngineUnavailableError("It has died.")
    reply = call("/health", service=both)
    assert reply.status == 503 and reply.error["message"] == "The model `org/b`: It has died."
    # The other one still answers.
    assert call("/v1/completions", {"model": "a", "prompt": "x"}, service=both).status == 200


def test_a_keys_limits_hold_for_all_models_together(call, models):
    gate = Gate(limits={"default": KeyLimits(requests_per_minute=2)})
    service = OpenAIService(models, gate=gate)
    statuses = [call("/v1/completions", {"model": n, "prompt": "x"}, service=service).status for n in ("a", "org/b")]
    refused = call("/v1/completions", {"model": "alias", "prompt": "x"}, service=service)
    assert statuses == [200, 200] and refused.status == 429


def test_metrics_of_all_are_one_exposition():
    texts = []
    for name, running in (("a", 1), ("b", 2)):
        metrics = EngineMetrics(name, 100)
        metrics.count_rejection("timeout_s")
        stats = EngineStats(num_running=running, generation_tokens=10 * running)
        texts.append(metrics.text(lambda stats=stats: stats))
    merged = merge_expositions(texts)
    families = list(text_string_to_metric_families(merged))
    names = [family.name for family in families]
    assert len(names) == len(set(names))  # as the format demands
    expected = sorted(
        (sample.name, sorted(sample.labels.items()), sample.value)
        for text in texts
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    )
    found = sorted(
        (sample.name, sorted(sample.labels.items()), sample.value)
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    )
    assert found == expected
    heads = [line for line in merged.splitlines() if line.startswith("#")]
    assert len(heads) == len(set(heads)) == len([line for line in texts[0].splitlines() if line.startswith("#")])


class TestGroup:
    def configs(self, *models):
        return [
            EngineConfig.from_args(model=model, served_model_name=[name], max_num_seqs=2, num_threads=1)
            for name, model in models
        ]

    def test_engines_start_drain_and_stop_together(self):
        group = EngineGroup.start(self.configs(("a", "paged-tiny"), ("b", "paged-tiny")))
        assert group.models.names == ("a", "b") and list(group.stats()) == ["a", "b"]
        group.check_health(60.0)
        assert group.drain(5.0)
        with pytest.raises(EngineUnavailableError, match="The model `a`"):
            group.check_health()
        group.shutdown()
        group.shutdown()

    def test_a_model_that_cannot_be_loaded_stops_those_before_it(self, tmp_path, monkeypatch):
        from paged_backend.engine.client import EngineClient

        stopped = []
        shutdown = EngineClient.shutdown
        monkeypatch.setattr(EngineClient, "shutdown", lambda client: (stopped.append(client), shutdown(client)))
        with pytest.raises(ModelLoadError, match="The model 'b': "):
            EngineGroup.start(self.configs(("a", "paged-tiny"), ("b", str(tmp_path)), ("c", "paged-tiny")))
        assert [client.config.model.served_model_name for client in stopped] == [("a",)]
