"""Prometheus metrics under vLLM's names and labels, so that its dashboards work unchanged."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import TypeVar, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from paged_backend.engine.stats import EngineStats
from paged_backend.executor.disk_tier import DiskStats
from paged_backend.executor.kv_transfer import TransferStats
from paged_backend.kv.block_life import BlockLife
from paged_backend.outputs import FinishReason, RequestStateStats

_LABELS = ("model_name", "engine")
_FIRST_TOKEN_MS = "1 5 10 20 40 60 80 100 250 500 750 1000 2500 5000 7500 10000 20000 40000 80000 160000 640000 2560000"
_FIRST_TOKEN_S = tuple(int(ms) / 1000 for ms in _FIRST_TOKEN_MS.split())
_INTER_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_REQUEST_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_ITERATION_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_REJECTION_REASONS = (
    "max_num_queued_reqs",
    "max_num_queued_tokens",
    "timeout_s",
    "default_timeout_s",
    "max_timeout_s",
)
_PARAMS_N = (1, 2, 5, 10, 20)
_PREEMPTIONS = (1, 2, 3, 4, 5, 10, 20)
_RESIDENCY_MS = "1 2 5 10 20 50 100 200 500 1000 2000 5000 10000 20000 30000 60000 120000 300000 600000 1200000 1800000"
_RESIDENCY_S = tuple(int(ms) / 1000 for ms in _RESIDENCY_MS.split())

_WAITING_REASONS = ("capacity", "deferred")
_FETCH_STAGES = ("in_progress",)
_PROMPT_SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")
_CACHE_SOURCES = ("device", "host")

_Metric = TypeVar("_Metric", Counter, Gauge)


class TallyHistogram(Collector):
    """A histogram that takes many equal observations at once: a step gives each of its sequences the same."""

    def __init__(
        self, name: str, text: str, buckets: Sequence[float], labels: Sequence[str], values: Sequence[str]
    ) -> None:
        self._name, self._text = name, text
        self._labels, self._values = labels, values
        self._bounds = [*map(float, buckets), float("inf")]
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Adds `count` observations of one value."""
        self._counts[bisect_left(self._bounds, value)] += count
        self._sum += value * count

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The registry's question."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        names = [*map(str, self._bounds[:-1]), "+Inf"]
        buckets = list(zip(names, accumulate(self._counts), strict=True))
        family.add_metric(self._values, buckets, self._sum)
        yield family


class EngineMetrics:
    """One engine's metrics, in a registry of their own. Written by the engine's thread, read by any."""

    def __init__(
        self, model_name: str, max_model_len: int, engine_index: int = 0, *, kv_cache_metrics: bool = False
    ) -> None:
        self.registry = CollectorRegistry()
        self._label_values = (model_name, str(engine_index))
        self._stats = EngineStats()
        self._told = threading.Lock()
        token_buckets = _one_two_five(max_model_len)

        self.num_requests_running = self._gauge("num_requests_running", "Sequences that run (n for a request of n).")
        self.num_requests_waiting = self._gauge("num_requests_waiting", "Sequences that wait to be admitted.")
        self._waiting_by_reason = self._by(
            Gauge, "num_requests_waiting_by_reason", "Sequences that wait, by what for.", "reason", _WAITING_REASONS
        )
        self._fetches_by_stage = self._by(
            Gauge, "num_requests_kv_fetch_by_stage", "Requests whose prefix is read from disk.", "stage", _FETCH_STAGES
        )
        self.kv_cache_usage_perc = self._gauge("kv_cache_usage_perc", "KV blocks in use; 1 is all of them.")
        self.prefix_cache_queries = self._counter("prefix_cache_queries", "Prompt tokens looked up.")
        self.prefix_cache_hits = self._counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.")
        self.external_prefix_cache_queries = self._counter(
            "external_prefix_cache_queries", "Of these, tokens not found, looked up in host memory and on disk."
        )
        self.external_prefix_cache_hits = self._counter(
            "external_prefix_cache_hits", "Of these, tokens found in host memory or on disk."
        )
        self.num_preemptions = self._counter("num_preemptions", "Sequences that were preempted.")
        self.num_requests_swapped = self._gauge(
            "num_requests_swapped", "Sequences that wait with their blocks in host memory."
        )
        self.host_cache_usage_perc = self._gauge(
            "kv_offload_cpu_cache_usage_perc", "Host memory for blocks in use; 1 is all of it."
        )
        self.store_bytes = self._counter("kv_offload_store_bytes", "Bytes of blocks copied to host memory.")
        self.load_bytes = self._counter("kv_offload_load_bytes", "Bytes of blocks copied back from host memory.")
        self.disk_read_bytes = self._counter("kv_offload_tiering_read_bytes", "Bytes of blocks read from disk.")
        self.disk_write_bytes = self._counter("kv_offload_tiering_write_bytes", "Bytes of blocks written to disk.")
        self.disk_failures = self._counter(
            "kv_offload_tiering_failures", "Blocks that could not be read from disk or written to it."
        )
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of requests that were prefilled.")
        self.prompt_tokens_cached = self._counter("prompt_tokens_cached", "Of these, tokens from the prefix cache.")
        self._prompt_tokens_by_source = self._by(
            Counter, "prompt_tokens_by_source", "Prompt tokens, by where they came from.", "source", _PROMPT_SOURCES
        )
        self._cached_tokens_by_source = self._by(
            Counter, "prompt_tokens_cached_by_source", "Cached ones, by where they were.", "source", _CACHE_SOURCES
        )
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated.")
        self.iteration_tokens = self._histogram(
            "iteration_tokens_total", "Tokens computed in a step.", _ITERATION_TOKENS
        )
        self.time_to_first_token = self._histogram(
            "time_to_first_token_seconds", "Arrival to first token.", _FIRST_TOKEN_S
        )
        self.inter_token_latency = TallyHistogram(
            "vllm:inter_token_latency_seconds",
            "From one token to the next.",
            _INTER_TOKEN_S,
            _LABELS,
            self._label_values,
        )
        self.registry.register(self.inter_token_latency)
        self.time_per_output_token = self._histogram(
            "request_time_per_output_token_seconds", "Decode time over tokens, per request.", _INTER_TOKEN_S
        )
        self.e2e_request_latency = self._histogram("e2e_request_latency_seconds", "Arrival to end.", _REQUEST_S)
        self.request_queue_time = self._histogram("request_queue_time_seconds", "Waiting.", _REQUEST_S)
        self.request_prefill_time = self._histogram("request_prefill_time_seconds", "Prefill.", _REQUEST_S)
        self.request_decode_time = self._histogram("request_decode_time_seconds", "Decode.", _REQUEST_S)
        self.request_inference_time = self._histogram(
            "request_inference_time_seconds", "Prefill and decode.", _REQUEST_S
        )
        self.request_prompt_tokens = self._histogram("request_prompt_tokens", "Prompt tokens.", token_buckets)
        self.request_generation_tokens = self._histogram(
            "request_generation_tokens", "Tokens generated, all samples.", token_buckets
        )
        self.request_max_num_generation_tokens = self._histogram(
            "request_max_num_generation_tokens", "Tokens of the longest sample.", token_buckets
        )
        self.request_prefill_kv_computed_tokens = self._histogram(
            "request_prefill_kv_computed_tokens", "Prompt tokens that were computed, not found.", token_buckets
        )
        self.request_num_preemptions = self._histogram(
            "request_num_preemptions", "Preemptions of a request.", _PREEMPTIONS
        )
        self.corrupted_requests = self._counter("corrupted_requests", "Requests whose logits were not numbers.")
        self._residency: tuple[Histogram, Histogram, Histogram] | None = None
        if kv_cache_metrics:
            self._residency = (
                self._histogram("kv_block_lifetime_seconds", "A block's content, from first to last.", _RESIDENCY_S),
                self._histogram("kv_block_idle_before_evict_seconds", "Its last use to its end.", _RESIDENCY_S),
                self._histogram("kv_block_reuse_gap_seconds", "From one of its uses to the next.", _RESIDENCY_S),
            )
        self.request_params_max_tokens = self._histogram(
            "request_params_max_tokens", "max_tokens of requests.", token_buckets
        )
        self.request_params_n = self._histogram("request_params_n", "n of requests.", _PARAMS_N)
        self.request_success = self._by(
            Counter, "request_success", "Requests that ended, by reason.", "finished_reason", get_args(FinishReason)
        )
        self._rejections = Counter(
            "vllm:admission_rejections",
            "Requests that were refused with 429, by the bound that they met.",
            ("model_name", "reason"),
            registry=self.registry,
        )
        for reason in _REJECTION_REASONS:  # there at 0, so that a rate is seen from the first on
            self._rejections.labels(model_name, reason)

    def text(self, snapshot: Callable[[], EngineStats]) -> str:
        """The exposition format, gauges and counters as of a snapshot taken now. For any thread."""
        with self._told:
            stats = snapshot()
            self._observe_stats(self._stats, stats)
            self._stats = stats
            return generate_latest(self.registry).decode()

    def _observe_stats(self, previous: EngineStats, stats: EngineStats) -> None:
        """Sets the gauges from a snapshot, and moves the counters on by what came since the one before."""
        self.num_requests_running.set(stats.num_running)
        self.num_requests_waiting.set(stats.num_waiting)
        self._waiting_by_reason["capacity"].set(stats.num_waiting - stats.num_fetching)
        self._waiting_by_reason["deferred"].set(stats.num_fetching)
        self._fetches_by_stage["in_progress"].set(stats.num_fetching)
        self.kv_cache_usage_perc.set(stats.kv_cache_usage)
        self.num_preemptions.inc(stats.num_preemptions - previous.num_preemptions)
        self.prefix_cache_queries.inc(stats.prefix_cache_queries - previous.prefix_cache_queries)
        self.prefix_cache_hits.inc(stats.prefix_cache_hits - previous.prefix_cache_hits)
        self.generation_tokens.inc(stats.generation_tokens - previous.generation_tokens)
        if stats.transfer is not None:
            self._observe_offload(previous, stats)

    def _observe_offload(self, previous: EngineStats, stats: EngineStats) -> None:
        self.external_prefix_cache_queries.inc(
            stats.external_prefix_cache_queries - previous.external_prefix_cache_queries
        )
        self.external_prefix_cache_hits.inc(stats.external_prefix_cache_hits - previous.external_prefix_cache_hits)
        self.num_requests_swapped.set(stats.num_swapped)
        self.host_cache_usage_perc.set(stats.num_used_host_blocks / max(stats.num_host_blocks, 1))
        before, now = previous.transfer or TransferStats(), stats.transfer or TransferStats()
        self.store_bytes.inc(now.stored_bytes - before.stored_bytes)
        self.load_bytes.inc(now.loaded_bytes - before.loaded_bytes)
        disk_before, disk = before.disk or DiskStats(), now.disk or DiskStats()
        self.disk_read_bytes.inc(disk.read_bytes - disk_before.read_bytes)
        self.disk_write_bytes.inc(disk.written_bytes - disk_before.written_bytes)
        self.disk_failures.inc(disk.num_failures - disk_before.num_failures)

    def count_rejection(self, reason: str) -> None:
        """A request was not let in. For any thread."""
        self._rejections.labels(self._label_values[0], reason).inc()

    def observe_prompt(self, num_tokens: int, num_cached: int, num_external: int) -> None:
        """A prompt has been computed.

        Args:
            num_cached: of its tokens, those that came from somewhere.
            num_external: of these, those that came from host memory or disk.
        """
        self.prompt_tokens.inc(num_tokens)
        self.prompt_tokens_cached.inc(num_cached)
        self._prompt_tokens_by_source["local_compute"].inc(num_tokens - num_cached)
        self._prompt_tokens_by_source["local_cache_hit"].inc(num_cached - num_external)
        self._prompt_tokens_by_source["external_kv_transfer"].inc(num_external)
        self._cached_tokens_by_source["device"].inc(num_cached - num_external)
        self._cached_tokens_by_source["host"].inc(num_external)

    def observe_request_end(self, stats: RequestStateStats, most_generated: int, reason: FinishReason) -> None:
        """Records what is known when a request ends; its longest sample has most_generated tokens."""
        self.request_success[reason].inc()
        if stats.is_corrupted:
            self.corrupted_requests.inc()
        self.e2e_request_latency.observe(stats.finished_ts - stats.queued_ts)
        self.request_generation_tokens.observe(stats.num_generation_tokens)
        self.request_max_num_generation_tokens.observe(most_generated)
        self.request_num_preemptions.observe(stats.num_recomputes + stats.num_swaps)
        if not stats.scheduled_ts:
            return
        self.request_queue_time.observe(stats.queue_s)
        self.request_inference_time.observe(stats.finished_ts - stats.scheduled_ts)
        if not stats.first_token_ts:
            return
        self.request_prefill_time.observe(stats.prefill_s)
        self.request_decode_time.observe(stats.decode_s)
        self.request_prefill_kv_computed_tokens.observe(stats.num_prompt_tokens - stats.num_cached_tokens)
        if most_generated > 1:
            self.time_per_output_token.observe(stats.decode_s / (most_generated - 1))

    def observe_block(self, life: BlockLife, evicted_s: float) -> None:
        """A block that was watched has lost its content; only with `kv_cache_metrics`."""
        assert self._residency is not None
        lifetime, idle, reuse_gap = self._residency
        lifetime.observe(evicted_s - life.born_s)
        idle.observe(evicted_s - life.last_use_s)
        for before_s, after_s in pairwise(life.uses_s):
            reuse_gap.observe(after_s - before_s)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"vllm:{name}", text, _LABELS, registry=self.registry).labels(*self._label_values)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"vllm:{name}", text, _LABELS, registry=self.registry).labels(*self._label_values)

    def _by(self, kind: type[_Metric], name: str, text: str, label: str, values: Sequence[str]) -> dict[str, _Metric]:
        """One metric for each value of another label, all of them there from the first scrape on."""
        family = kind(f"vllm:{name}", text, (*_LABELS, label), registry=self.registry)
        return {value: family.labels(*self._label_values, value) for value in values}

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"vllm:{name}", text, _LABELS, buckets=tuple(buckets), registry=self.registry).labels(
            *self._label_values
        )


def _one_two_five(limit: int) -> tuple[int, ...]:
    """1, 2, 5, 10, 20, 50 ... up to the limit: vLLM's buckets for token counts."""
    buckets: list[int] = []
    magnitude = 1
    while magnitude <= limit:
        buckets.extend(step * magnitude for step in (1, 2, 5) if step * magnitude <= limit)
        magnitude *= 10
    return tuple(buckets)
