"""What both live hosts tell of a request: its receipt, its trace, its line in the log, and the metrics."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.otlp_receiver import OtlpReceiver, attributes
from tests.serving.conftest import Host

TIMEOUT_S = 60
SECRET = "A secret that no log may hold"
DASHBOARD = Path(__file__).resolve().parents[2] / "configs" / "grafana-dashboard.json"


def log_lines(host: Host) -> list[dict[str, Any]]:
    """The lines of its log that are JSON."""
    lines = host.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_a_request_is_followed(each_host: Host, receiver: OtlpReceiver) -> None:
    trace_id, parent_id = uuid.uuid4().hex, uuid.uuid4().hex[:16]
    body = {"prompt": SECRET, "max_tokens": 8, "ignore_eos": True, "stream": True, "return_receipt": True}
    headers = {"traceparent": f"00-{trace_id}-{parent_id}-01"}
    reply = httpx.post(f"{each_host.url}/v1/completions", json=body, headers=headers, timeout=TIMEOUT_S)
    assert reply.status_code == 200, reply.text
    chunks = [json.loads(frame[len("data: ") :]) for frame in reply.text.split("\n\n")[:-2]]
    (receipt,) = chunks[-1]["usage"]["receipts"]
    assert receipt["steps"] == 8 and receipt["kv_block_seconds"] > 0

    (span,) = receiver.spans("llm_request", trace_id=trace_id)
    assert span.parent_span_id.hex() == parent_id
    told = attributes(span)
    assert told["gen_ai.request.id"] == chunks[0]["id"]
    assert told["gen_ai.latency.time_in_model_decode"] == receipt["decode_seconds"]
    assert [child.name for child in receiver.children(span)] == ["queue", "prefill", "decode"]

    deadline_s = time.monotonic() + TIMEOUT_S
    while not (mine := [line for line in log_lines(each_host) if line.get("request_id") == chunks[0]["id"]]):
        assert time.monotonic() < deadline_s, each_host.log_file.read_text()[-2000:]
        time.sleep(0.05)
    (line,) = mine
    assert (line["logger"], line["message"], line["status"]) == ("paged_backend.access", "request", 200)
    assert line["output_tokens"] == 8 and {"timestamp", "level", "first_s", "total_s"} <= set(line)
    assert SECRET not in each_host.log_file.read_text(encoding="utf-8", errors="replace")


def test_the_engine_tells_of_its_start(each_host: Host) -> None:
    started = [line for line in log_lines(each_host) if line["logger"] == "paged_backend.engine.loading"]
    assert len(started) == 2 and all("is loaded" in line["message"] for line in started), "one for each model"


def test_metrics_of_both_models(each_host: Host) -> None:
    reply = httpx.get(f"{each_host.url}/metrics", timeout=TIMEOUT_S)
    families = {family.name: family for family in text_string_to_metric_families(reply.text)}
    models = {sample.labels["model_name"] for sample in families["vllm:request_success"].samples}
    assert models == {"paged-tiny", "second"}
    shown = DASHBOARD.read_text(encoding="utf-8")
    ours = {name for name in families if name.startswith("vllm:") and not name.endswith("_created")}
    assert len(ours) > 40 and {name for name in ours if name not in shown} == set()
