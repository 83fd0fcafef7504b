"""Receipts, and the traces that requests are part of, through the service on a real engine."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from paged_backend.config import EngineConfig
from paged_backend.engine.client import EngineClient
from paged_backend.handlers.openai.served_models import ServedModels
from paged_backend.handlers.openai.service import OpenAIService
from tests.otlp_receiver import OtlpReceiver, attributes, otlp_receiver

from .events import events_of

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
LONG = "The keys and values of a sequence lie in blocks, and a block table says in which. " * 2
ASKED = {"max_tokens": 12, "ignore_eos": True, "temperature": 0, "return_receipt": True}
NAMES = {
    "queue_seconds",
    "prefill_seconds",
    "decode_seconds",
    "cached_tokens",
    "kv_block_seconds",
    "preemptions",
    "steps",
}


@pytest.fixture(scope="module")
def receiver() -> Iterator[OtlpReceiver]:
    with otlp_receiver() as opened:
        yield opened


@pytest.fixture(scope="module")
def engine(receiver) -> Iterator[EngineClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")  # milliseconds until a batch goes out
        client = EngineClient.start(EngineConfig.from_args(otlp_traces_endpoint=receiver.endpoint, num_threads=1))
    yield client
    client.shutdown()


@pytest.fixture
def service(engine):
    return OpenAIService(ServedModels.one(engine, ("paged-tiny",)))


def test_a_receipt_says_what_a_request_took(call):
    begun_s = time.monotonic()
    usage = call(COMPLETIONS, {**ASKED, "prompt": LONG, "n": 2}).json["usage"]
    wall_s = time.monotonic() - begun_s
    (receipt,) = usage["receipts"]
    assert set(receipt) == NAMES
    seconds = [receipt[f"{phase}_seconds"] for phase in ("queue", "prefill", "decode")]
    assert min(seconds) >= 0 and sum(seconds) <= wall_s
    assert receipt["preemptions"] == {"recompute": 0, "swap": 0}
    assert receipt["steps"] == 12, "the first token comes with the prompt's only step"
    most_blocks = 2 * -(-(usage["prompt_tokens"] + 12) // 16)
    least_blocks = usage["prompt_tokens"] // 16
    assert least_blocks * receipt["prefill_seconds"] <= receipt["kv_block_seconds"] <= most_blocks * wall_s
    (again,) = call(COMPLETIONS, {**ASKED, "prompt": LONG}).json["usage"]["receipts"]
    assert receipt["cached_tokens"] == 0 and again["cached_tokens"] == (usage["prompt_tokens"] - 1) // 16 * 16


def test_each_prompt_has_its_receipt(call):
    usage = call(COMPLETIONS, {**ASKED, "prompt": ["One", "Two", "Three"]}).json["usage"]
    assert [receipt["steps"] for receipt in usage["receipts"]] == [12] * 3


@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": True}}], ids=["alone", "with usage"])
@pytest.mark.parametrize(
    ("path", "prompt"),
    [(COMPLETIONS, {"prompt": "One"}), (CHAT, {"messages": [{"role": "user", "content": "Hi"}]})],
    ids=["completions", "chat"],
)
def test_a_stream_ends_with_it(call, path, prompt, options):
    chunks = call(path, {**ASKED, **prompt, **options, "stream": True}).chunks
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 12
    assert chunks[-1]["usage"]["receipts"][0]["steps"] == 12
    assert not any(chunk.get("usage") for chunk in chunks[:-1])


@pytest.mark.parametrize(
    ("path", "prompt"),
    [
        ("/v1/responses", {"input": "Hi", "max_output_tokens": 12}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 12}),
    ],
)
@pytest.mark.parametrize("asked", [False, True])
def test_the_other_conversations_have_it_too(call, path, prompt, asked):
    body = {**prompt, "ignore_eos": True, "temperature": 0, "return_receipt": asked}
    usages = [call(path, body).json["usage"]]
    *events, last = events_of(call(path, {**body, "stream": True}))
    if path == "/v1/responses":
        usages.append(last["response"]["usage"])
    else:
        usages.append(events[-1]["usage"])
        events = events[:-1]
    assert "receipts" not in str(events)
    for usage in usages:
        assert ("receipts" in usage) == asked
        for receipt in usage.get("receipts", ()):
            assert set(receipt) == NAMES and receipt["steps"] == 12
    assert call(path, {**body, "return_receipt": "yes"}).status == 400


def test_in_continuous_usage_it_comes_when_it_is_known(call):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = call(COMPLETIONS, {**ASKED, "prompt": "One", "stream": True, "stream_options": options}).chunks
    assert "receipts" in chunks[-1]["usage"] and "receipts" not in chunks[0]["usage"]


@pytest.mark.parametrize("stream", [False, True])
def test_who_does_not_ask_gets_none(call, stream):
    reply = call(COMPLETIONS, {"prompt": "One", "max_tokens": 2, "stream": stream})
    assert b"receipt" not in reply.body


def test_a_receipt_is_asked_for_with_a_boolean(call):
    assert call(COMPLETIONS, {"prompt": "One", "return_receipt": "yes"}).error["param"] == "body.return_receipt"


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_the_traceparent_of_a_request_goes_on(call, receiver, path):
    trace_id = f"{path.count('/'):032x}"
    headers = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
    prompt = {"prompt": "One"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "Hi"}]}
    answer = call(path, {**prompt, "max_tokens": 2}, headers=headers).json
    (span,) = receiver.spans("llm_request", trace_id=trace_id)
    assert attributes(span)["gen_ai.request.id"] == answer["id"]
    assert span.parent_span_id.hex() == "00f067aa0ba902b7"
