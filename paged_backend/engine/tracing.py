"""A trace of each request, made and sent by threads of its own when the request is over."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from paged_backend.engine.request import EngineRequest
from paged_backend.errors import ConfigError
from paged_backend.outputs import FinishReason, RequestStateStats

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

logger = logging.getLogger(__name__)

SERVICE_NAME = "paged-backend"
"""What the service is called where the environment (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES) says nothing."""

_MAX_WAITING = 10_000
"""Requests whose spans are still to be made; one more is left out."""

_CLOSE_TIMEOUT_S = 5.0
"""How long an end may take to send what is left."""


class _Ended(NamedTuple):
    """A request that is over."""

    request: EngineRequest
    stats: RequestStateStats
    reason: FinishReason


class RequestTracer:
    """Sends a span for each request, with one for its time in the queue, its prefill and its decode in it.

    The request's span continues the trace of its `trace_headers` (W3C: traceparent, tracestate), and has vLLM's name
    and attributes, from OpenTelemetry's conventions for generative AI. Which traces are kept, the usual variables say
    (OTEL_TRACES_SAMPLER; without it, a trace that came is kept where its sender keeps it, and all others are).

    Whoever ends a request only hands it over. A thread here makes the spans, the SDK's batch processor sends them in
    another; what a receiver that is down cannot take is lost, and the SDK logs it.

    Args:
        model_name: what is served.
        exporter: where spans go.
    """

    def __init__(self, model_name: str, exporter: SpanExporter) -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME as NAME
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create()
        if str(resource.attributes.get(NAME, "unknown_service")).startswith("unknown_service"):
            resource = resource.merge(Resource({NAME: SERVICE_NAME}))
        self._model_name = model_name
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(__name__)
        self._propagator = TraceContextTextMapPropagator()
        self._ended: queue.SimpleQueue[_Ended | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="paged-traces", daemon=True)
        self._thread.start()

    @classmethod
    def to(cls, endpoint: str, model_name: str) -> RequestTracer:
        """One that sends OTLP over HTTP to a URL.

        Raises:
            ConfigError: OpenTelemetry is not installed.
        """
        require_opentelemetry()
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return cls(model_name, OTLPSpanExporter(endpoint=endpoint))

    def record(self, request: EngineRequest, stats: RequestStateStats, reason: FinishReason) -> None:
        """Takes a request that is over. Costs its caller next to nothing."""
        if self._ended.qsize() < _MAX_WAITING:
            self._ended.put(_Ended(request, stats, reason))

    def close(self) -> None:
        """Sends what is left, for a few seconds at most; nothing may be recorded any more. Safe to call twice."""
        self._ended.put(None)
        self._thread.join(_CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        while (ended := self._ended.get()) is not None:
            try:
                self._trace(ended)
            except Exception:
                logger.exception("a trace was lost", extra={"request_id": ended.request.request_id})
        self._provider.shutdown()

    def _trace(self, ended: _Ended) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        stats = ended.stats
        begin_ns = round(stats.arrival_time * 1e9)

        def wall_ns(monotonic_s: float) -> int:
            return begin_ns + round((monotonic_s - stats.queued_ts) * 1e9)

        span = self._tracer.start_span(
            "llm_request",
            context=self._propagator.extract(dict(ended.request.trace_headers or {})),
            kind=SpanKind.SERVER,
            attributes=_attributes(ended, self._model_name),
            start_time=begin_ns,
        )
        if ended.reason == "error":
            span.set_status(Status(StatusCode.ERROR))
        inside = set_span_in_context(span)
        for name, start_s, end_s in _phases(stats):
            self._tracer.start_span(name, context=inside, start_time=wall_ns(start_s)).end(wall_ns(end_s))
        span.end(wall_ns(stats.finished_ts))


def require_opentelemetry() -> None:
    """Looks whether traces can be sent.

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "otlp_traces_endpoint needs OpenTelemetry's SDK and its OTLP exporter over HTTP, and they are not "
            f"installed ({error.name} is missing): pip install 'paged-backend[otel]', or leave the endpoint out."
        ) from error


def _phases(stats: RequestStateStats) -> Iterator[tuple[str, float, float]]:
    """Name, start and end of what a request went through; the ends are times of `time.monotonic`."""
    yield "queue", stats.queued_ts, stats.scheduled_ts or stats.finished_ts
    if stats.scheduled_ts:
        yield "prefill", stats.scheduled_ts, stats.first_token_ts or stats.finished_ts
    if stats.first_token_ts:
        yield "decode", stats.first_token_ts, stats.finished_ts


def _attributes(ended: _Ended, model_name: str) -> dict[str, Any]:
    """What is said of a request: nothing of its prompt or its output but their lengths."""
    request, stats, params = ended.request, ended.stats, ended.request.params
    attributes: dict[str, Any] = {
        "gen_ai.request.id": request.request_id,
        "gen_ai.request.n": params.n,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.response.model": model_name,
        "gen_ai.response.finish_reasons": [ended.reason],
        "gen_ai.usage.prompt_tokens": stats.num_prompt_tokens,
        "gen_ai.usage.completion_tokens": stats.num_generation_tokens,
        "gen_ai.usage.cached_tokens": stats.num_cached_tokens,
        "gen_ai.usage.num_sequences": params.num_sequences,
        "gen_ai.latency.e2e": stats.finished_ts - stats.queued_ts,
        "gen_ai.latency.time_in_queue": stats.queue_s,
        "paged_backend.kv_block_seconds": stats.kv_block_seconds,
        "paged_backend.num_steps": stats.num_steps,
        "paged_backend.num_recomputes": stats.num_recomputes,
        "paged_backend.num_swaps": stats.num_swaps,
    }
    if params.max_tokens is not None:
        attributes["gen_ai.request.max_tokens"] = params.max_tokens
    if stats.scheduled_ts:
        attributes["gen_ai.latency.time_in_model_inference"] = stats.finished_ts - stats.scheduled_ts
        attributes["gen_ai.latency.time_in_model_prefill"] = stats.prefill_s
    if stats.first_token_ts:
        attributes["gen_ai.latency.time_to_first_token"] = stats.first_token_latency
        attributes["gen_ai.latency.time_in_model_decode"] = stats.decode_s
    return attributes
