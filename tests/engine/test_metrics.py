"""What the metrics count, and what a request is told of itself, after runs whose steps are known."""

from __future__ import annotations

import math
import threading
import time
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from paged_backend.config import EngineConfig
from paged_backend.engine.client import EngineClient
from paged_backend.engine.metrics import EngineMetrics
from paged_backend.errors import ConfigError, RequestFailedError
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import NOT_DRAWN, StepPlan, StepResult
from tests.engine.fake_executor import FakeExecutor

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples_of(client: EngineClient) -> Samples:
    common = {("engine", "0"), ("model_name", "m")}
    families = text_string_to_metric_families(client.metrics_text())
    return {
        (sample.name.removeprefix("vllm:"), frozenset(sample.labels.items()) - common): sample.value
        for family in families
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def start(executor: FakeExecutor, **engine_args: Any) -> EngineClient:
    config = EngineConfig.from_args(served_model_name="m", **engine_args)
    return EngineClient(config, cast(Any, executor), tokenizer=None)


def params(max_tokens: int, **kwargs: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, seed=0, **kwargs)


def test_prompt_tokens_by_where_they_came_from() -> None:
    client = start(FakeExecutor())
    prompt = list(range(5, 15))  # blocks of 4: two are full
    for _ in range(2):
        client.submit(prompt, params(3)).collect()
    client.shutdown()
    samples = samples_of(client)
    assert value(samples, "prompt_tokens_total") == 20
    assert value(samples, "prompt_tokens_by_source_total", source="local_compute") == 12
    assert value(samples, "prompt_tokens_by_source_total", source="local_cache_hit") == 8
    assert value(samples, "prompt_tokens_by_source_total", source="external_kv_transfer") == 0
    assert value(samples, "prompt_tokens_cached_by_source_total", source="device") == 8
    assert value(samples, "prompt_tokens_cached_total") == 8
    assert value(samples, "request_prefill_kv_computed_tokens_sum") == 10 + 2
    assert value(samples, "request_prefill_kv_computed_tokens_bucket", le="2.0") == 1


def test_a_preempted_request_is_told_so() -> None:
    class SmallExecutor(FakeExecutor):
        num_blocks = 10

    client = start(SmallExecutor(), max_num_seqs=2, enable_prefix_caching=False)
    streams = client.submit_all([[5, 6, 7], [8, 9, 10]], params(20), request_ids=["a", "b"])
    first, second = [stream.collect().metrics for stream in streams]
    client.shutdown()
    assert first is not None and second is not None
    assert (first.num_recomputes, second.num_recomputes) == (0, 1) and not first.num_swaps + second.num_swaps
    assert first.num_steps == 20
    assert second.num_steps == 20, "what it had drawn is computed again in the step that draws the next"
    samples = samples_of(client)
    assert value(samples, "num_preemptions_total") == 1
    assert value(samples, "request_num_preemptions_sum") == 1
    assert value(samples, "request_num_preemptions_count") == 2
    assert value(samples, "request_max_num_generation_tokens_sum") == 40


def test_times_add_up_and_follow_each_other() -> None:
    client = start(FakeExecutor())
    before, wall = time.monotonic(), time.time()
    metrics = client.submit([5, 6, 7], params(6, n=2)).collect().metrics
    after = time.monotonic()
    client.shutdown()
    assert metrics is not None
    assert before <= metrics.queued_ts <= metrics.scheduled_ts <= metrics.first_token_ts <= metrics.last_token_ts
    assert metrics.last_token_ts <= metrics.finished_ts <= after
    whole = metrics.finished_ts - metrics.queued_ts
    assert math.isclose(metrics.queue_s + metrics.prefill_s + metrics.decode_s, whole)
    assert metrics.first_token_latency == metrics.first_token_ts - metrics.queued_ts
    assert wall - 1 <= metrics.arrival_time <= wall + 60
    assert (metrics.num_generation_tokens, metrics.num_prompt_tokens, metrics.num_steps) == (12, 3, 6)
    assert not metrics.is_corrupted


@pytest.mark.parametrize("ends", ["in the queue", "after a token"])
def test_a_request_that_is_aborted(ends: str) -> None:
    aborted = threading.Event()

    def hold(_: StepPlan) -> None:
        if len(executor.plans) > 3:
            assert aborted.wait(20)

    executor = FakeExecutor()
    executor.before_run = hold
    client = start(executor, max_num_seqs=1)
    running = client.submit([5], params(200))
    waiting = client.submit([6], params(200))
    next(running)
    stream = waiting if ends == "in the queue" else running
    stream.abort()
    aborted.set()
    metrics = stream.collect().metrics
    client.shutdown()
    assert metrics is not None
    assert (metrics.num_steps > 0) == (metrics.kv_block_seconds > 0) == (ends == "after a token")
    assert bool(metrics.scheduled_ts) == bool(metrics.first_token_ts) == (ends == "after a token")


def test_corrupted_requests() -> None:
    class BrokenExecutor(FakeExecutor):
        def run(self, plan: StepPlan) -> StepResult:
            return StepResult([NOT_DRAWN] * len(super().run(plan).token_ids))

    client = start(BrokenExecutor())
    with pytest.raises(RequestFailedError):
        client.submit([5], params(3)).collect()
    client.shutdown()
    samples = samples_of(client)
    assert value(samples, "corrupted_requests_total") == 1
    assert value(samples, "request_success_total", finished_reason="error") == 1


def test_waiting_by_reason_adds_up() -> None:
    client = start(FakeExecutor())
    samples = samples_of(client)
    client.shutdown()
    reasons = [value(samples, "num_requests_waiting_by_reason", reason=reason) for reason in ("capacity", "deferred")]
    assert sum(reasons) == value(samples, "num_requests_waiting") == 0
    assert value(samples, "num_requests_kv_fetch_by_stage", stage="in_progress") == 0


def test_blocks_are_watched_only_where_that_is_asked_for() -> None:
    counts = {}
    for watched in (False, True):
        executor = FakeExecutor()
        client = start(executor, kv_cache_metrics=watched, kv_cache_metrics_sample=1.0)
        for first in (5, 60, 110, 5):  # 64 blocks of 4 tokens: the third request overwrites the first's
            client.submit(list(range(first, first + 50)) * 2, params(30)).collect()
        client.shutdown()
        samples = samples_of(client)
        counts[watched] = [number for (name, _), number in samples.items() if name == "kv_block_lifetime_seconds_count"]
    assert counts[False] == [] and counts[True][0] > 0


@pytest.mark.parametrize("sample", [0, 1.5, "all", True])
def test_a_wrong_sample_is_refused(sample: object) -> None:
    with pytest.raises(ConfigError, match="kv_cache_metrics_sample must be in"):
        EngineConfig.from_args(kv_cache_metrics_sample=sample)


def test_registries_do_not_share_anything() -> None:
    """Several engines run in one process."""
    first, second = (EngineMetrics(name, 100) for name in "ab")
    first.observe_prompt(3, 0, 0)
    assert second.registry.get_sample_value("vllm:prompt_tokens_total", {"model_name": "b", "engine": "0"}) == 0
