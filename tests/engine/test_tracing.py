"""Traces of requests, as a receiver gets them from an engine that runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from paged_backend.config import EngineConfig
from paged_backend.engine import tracing
from paged_backend.engine.client import EngineClient
from paged_backend.engine.tracing import RequestTracer
from paged_backend.errors import ConfigError, RequestFailedError
from paged_backend.sampling_params import SamplingParams
from tests.engine.fake_executor import FakeExecutor
from tests.otlp_receiver import OtlpReceiver, attributes, otlp_receiver

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with otlp_receiver() as opened:
        yield opened


@pytest.fixture
def executor() -> FakeExecutor:
    return FakeExecutor()


@pytest.fixture
def client(receiver: OtlpReceiver, executor: FakeExecutor) -> Iterator[EngineClient]:
    config = EngineConfig.from_args(otlp_traces_endpoint=receiver.endpoint)
    opened = EngineClient(config, cast(Any, executor), tokenizer=None)
    yield opened
    opened.shutdown()


def params(max_tokens: int = 4, **kwargs: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, seed=0, temperature=0.5, top_p=0.9, **kwargs)


def test_a_request_is_a_span_with_its_phases_in_it(client: EngineClient, receiver: OtlpReceiver) -> None:
    before_ns = time.time_ns()
    output = client.submit([5, 6, 7], params(n=2), request_id="mine").collect()
    client.shutdown()
    (span,) = receiver.spans("llm_request")
    assert receiver.services == {"paged-backend"}
    assert not span.parent_span_id and span.kind == span.SPAN_KIND_SERVER
    told, metrics = attributes(span), output.metrics
    assert metrics is not None
    assert told["gen_ai.request.id"] == "mine"
    assert (told["gen_ai.request.n"], told["gen_ai.request.max_tokens"]) == (2, 4)
    assert (told["gen_ai.request.temperature"], told["gen_ai.request.top_p"]) == (0.5, 0.9)
    assert told["gen_ai.response.model"] == "paged-tiny"
    assert told["gen_ai.response.finish_reasons"] == ["length"]
    assert (told["gen_ai.usage.prompt_tokens"], told["gen_ai.usage.completion_tokens"]) == (3, 8)
    assert told["gen_ai.latency.e2e"] == metrics.finished_ts - metrics.queued_ts
    assert told["gen_ai.latency.time_to_first_token"] == metrics.first_token_latency
    assert told["paged_backend.kv_block_seconds"] == metrics.kv_block_seconds
    phases = receiver.children(span)
    assert [phase.name for phase in phases] == ["queue", "prefill", "decode"]
    assert all(phase.trace_id == span.trace_id for phase in phases)
    ends = [span.start_time_unix_nano, *(phase.end_time_unix_nano for phase in phases)]
    assert ends[:-1] == [phase.start_time_unix_nano for phase in phases], "phases follow each other without gaps"
    assert ends[-1] == span.end_time_unix_nano
    assert before_ns - 10**7 <= ends[0] <= ends[-1] <= time.time_ns() + 10**7
    seconds = [phase.end_time_unix_nano - phase.start_time_unix_nano for phase in phases]
    assert seconds == pytest.approx([metrics.queue_s * 1e9, metrics.prefill_s * 1e9, metrics.decode_s * 1e9], abs=1e3)


def test_a_trace_that_came_goes_on(client: EngineClient, receiver: OtlpReceiver) -> None:
    headers = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01", "tracestate": "vendor=1"}
    client.submit([5], params(), trace_headers=headers).collect()
    client.submit([5], params(), trace_headers={"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-00"}).collect()
    client.submit([5], params(), trace_headers={"traceparent": "nonsense"}).collect()
    client.shutdown()
    continued, own = receiver.spans("llm_request", 2)  # the second's sender keeps no trace
    assert (continued.trace_id.hex(), continued.parent_span_id.hex()) == (TRACE_ID, SPAN_ID)
    assert continued.trace_state == "vendor=1"
    assert own.trace_id.hex() != TRACE_ID and not own.parent_span_id


def test_requests_that_end_early(client: EngineClient, receiver: OtlpReceiver, executor: FakeExecutor) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("a kernel has failed")

    executor.before_run = fail
    with pytest.raises(RequestFailedError):
        client.submit([5], params(), request_id="fails").collect()
    client.shutdown()
    (span,) = receiver.spans("llm_request")
    assert span.status.code == span.status.STATUS_CODE_ERROR
    told = attributes(span)
    assert told["gen_ai.response.finish_reasons"] == ["error"] and "gen_ai.latency.time_to_first_token" not in told
    assert [phase.name for phase in receiver.children(span)] == ["queue", "prefill"]


def test_a_receiver_that_is_down_costs_no_request(
    executor: FakeExecutor, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "_CLOSE_TIMEOUT_S", 0.2)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1")
    config = EngineConfig.from_args(otlp_traces_endpoint=f"http://127.0.0.1:{free_port}/v1/traces")
    client = EngineClient(config, cast(Any, executor), tokenizer=None)
    assert len(client.submit([5], params()).collect().outputs[0].token_ids) == 4
    client.shutdown()


@pytest.fixture
def free_port() -> int:
    with otlp_receiver() as closed:
        pass
    return int(closed.endpoint.rsplit(":", 1)[1].split("/")[0])


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"otlp_traces_endpoint needs .*paged-backend\[otel\]"):
        RequestTracer.to("http://127.0.0.1:4318/v1/traces", "m")
    config = EngineConfig.from_args(otlp_traces_endpoint="http://127.0.0.1:4318/v1/traces", model="no-such-model")
    with pytest.raises(ConfigError, match="otel"):
        EngineClient.start(config)


@pytest.mark.parametrize("url", ["", "localhost:4317", "grpc://x"])
def test_a_wrong_endpoint_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="otlp_traces_endpoint"):
        EngineConfig.from_args(otlp_traces_endpoint=url)
