"""An engine in a process of its own: whoever calls it sees what an engine in a thread shows, and no more of its end."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from paged_backend import LLM, BeamSearchParams, SamplingParams
from paged_backend.engine.client import EngineClient
from paged_backend.errors import (
    EngineUnavailableError,
    InvalidRequestError,
    QueueFullError,
    RequestFailedError,
)
from paged_backend.outputs import RequestOutput
from paged_backend.sampling_params import LogitsProcessorConstructor, StructuredOutputsParams
from tests.engine import example_processors
from tests.engine.engine_processes import ENGINE, LONG, QUICK, TIMEOUT_S, engine_of, pause, wait_until
from tests.engine.example_processors import forbid_even
from tests.tiny_models import VOCAB_SIZE, make_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("llama"), tokenizer=True)


@pytest.fixture(scope="module")
def thread(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), **ENGINE) as llm:
        yield llm


@pytest.fixture(scope="module")
def process(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), **ENGINE, engine_process=True) as llm:
        yield llm


@pytest.fixture
def client(process: LLM) -> Iterator[EngineClient]:
    """It has nothing to do before and after."""
    yield process._client
    wait_until(lambda: not process._client._desk._streams)


def plain(outputs: list[RequestOutput]) -> list[RequestOutput]:
    """All but what it is called and what it took."""
    return [dataclasses.replace(output, request_id="", metrics=None, num_cached_tokens=0) for output in outputs]


KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "samples": {"n": 3, "top_k": 20, "presence_penalty": 0.5},
    "logprobs": {"logprobs": 4, "n": 2, "logprob_token_ids": [7, 8]},
    "the prompt's": {"prompt_logprobs": 2, "logprobs": 0},
    "best_of": {"n": 2, "best_of": 4},
    "beams": {"n": 2, "use_beam_search": True, "temperature": 0.0},
    "stop strings": {"stop": ["e", "ab"], "include_stop_str_in_output": True},
    "bad words": {"bad_words": ["a", "the"], "min_tokens": 4},
    "own seed": {"seed": None},
    "nothing": {"max_tokens": 0, "prompt_logprobs": 1},
    "a grammar": {"structured_outputs": StructuredOutputsParams(regex="[a-d]{3,9}"), "n": 2},
    "a processor": {"logits_processors": ["tests.engine.example_processors:forbid_even"]},
    "one with arguments": {
        "logits_processors": [
            LogitsProcessorConstructor(qualname="tests.engine.example_processors:Shift", args=[9], kwargs={"by": 5.0})
        ]
    },
    "a function": {"logits_processors": [forbid_even]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits(thread: LLM, process: LLM, kind: str) -> None:
    params = SamplingParams(**{"seed": 5, "max_tokens": 12, **KINDS[kind]})
    prompts: list[Any] = [[3 + i] * (1 + 5 * i) for i in range(4)] + ["the fox and the dog"]
    here, there = (plain(llm.generate(prompts, params, use_tqdm=False)) for llm in (thread, process))
    assert here == there
    assert kind == "nothing" or all(output.outputs[0].token_ids for output in there)


def test_a_crowd(thread: LLM, process: LLM) -> None:
    """More than can run at once, with too few blocks for them: preempted, in chunks, and the same."""
    rng = random.Random(0)
    prompts: list[Any] = [[rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randrange(1, 90))] for _ in range(40)]
    params = [
        SamplingParams(
            n=rng.choice((1, 1, 2)),
            seed=i,
            max_tokens=rng.randrange(1, 60),
            logprobs=rng.choice((None, None, 1)),
            stop=rng.choice(([], [], ["e"])),
        )
        for i in range(len(prompts))
    ]
    here, there = (plain(llm.generate(prompts, params, use_tqdm=False)) for llm in (thread, process))
    assert here == there
    assert process.stats().num_preemptions and thread.stats().num_preemptions


def test_beams(thread: LLM, process: LLM) -> None:
    params = BeamSearchParams(beam_width=3, max_tokens=8)
    assert thread.beam_search([[5, 6]], params) == process.beam_search([[5, 6]], params)


def test_deltas_come_one_by_one_on_an_event_loop(thread: LLM, client: EngineClient) -> None:
    async def read(client: EngineClient, i: int) -> list[Any]:
        stream = client.submit([3 + i] * 5, SamplingParams(max_tokens=9, seed=i, ignore_eos=True, n=1 + i % 2))
        deltas = [delta async for delta in stream]
        assert deltas[-1].finished and deltas[-1].metrics is not None
        assert deltas[-1].metrics.num_steps >= 9 and deltas[-1].metrics.kv_block_seconds > 0
        return [(output.index, output.token_ids, output.text) for delta in deltas for output in delta.outputs]

    async def read_all(client: EngineClient) -> list[Any]:
        return await asyncio.gather(*(read(client, i) for i in range(6)))

    there = asyncio.run(read_all(client))
    assert there == asyncio.run(read_all(thread._client))
    assert all(len(token_ids) == 1 for token_ids in [one[1] for one in there[0]])


@pytest.mark.parametrize(
    ("prompt", "arguments"),
    [
        ([], {}),
        ([VOCAB_SIZE], {}),
        ([5] * 256, {}),
        ([5], {"n": 9}),
        ([5] * 200, {"n": 8, "use_beam_search": True, "temperature": 0.0, "max_tokens": 40}),
        ([5], {"stop_token_ids": [VOCAB_SIZE]}),
        ([5], {"logprobs": 21}),
        ([5], {"min_tokens": 300, "max_tokens": None}),
        ([5], {"logits_processors": ["nobody:knows"]}),
        ([5], {"logits_processors": [{"qualname": "tests.engine.example_processors:Shift"}]}),
        ([5], {"structured_outputs": StructuredOutputsParams(regex="(")}),
        ([5], {"structured_outputs": StructuredOutputsParams(json={"pattern": 5})}),
    ],
)
def test_what_is_refused_is_refused_alike(
    thread: LLM, client: EngineClient, prompt: list[int], arguments: dict[str, Any]
) -> None:
    def refusal(client: EngineClient) -> tuple[type, str, str | None]:
        with pytest.raises(InvalidRequestError) as raised:
            client.submit(prompt, SamplingParams(**{"max_tokens": 4, **arguments})).collect()
        return raised.type, str(raised.value), raised.value.param

    assert refusal(client) == refusal(thread._client)


class Unreadable:
    """What another process cannot make again."""

    def __call__(self, *_: Any) -> Any:
        raise AssertionError

    def __reduce__(self) -> Any:
        return (int, ("no number",))


def test_functions_that_cannot_be_sent(client: EngineClient) -> None:
    def inner(*_: Any) -> Any:
        raise AssertionError

    with pytest.raises(InvalidRequestError, match=r"inner cannot be sent .* leave engine_process out") as raised:
        client.submit([5], SamplingParams(logits_processors=[inner]))
    assert raised.value.param == "logits_processors"
    other = client.submit([6], LONG)
    with pytest.raises(RequestFailedError):
        client.submit([5], SamplingParams(logits_processors=[Unreadable()])).collect()
    assert len(other.collect().outputs[0].token_ids) == 200
    assert client.stats().num_waiting == client.stats().num_waiting_tokens == 0


def test_a_processor_that_fails_ends_its_request_alone(client: EngineClient, caplog: pytest.LogCaptureFixture) -> None:
    other = client.submit([6], QUICK)
    failing = SamplingParams(max_tokens=5, logits_processors=[example_processors.raise_in_the_third_step])
    with pytest.raises(InvalidRequestError, match="raised RuntimeError"):
        client.submit([5], failing).collect()
    assert len(other.collect().outputs[0].token_ids) == 3
    wait_until(lambda: "a secret of the operator's" in caplog.text)
    (record,) = [record for record in caplog.records if record.exc_text]
    assert record.process == engine_of(client).pid != os.getpid()
    assert "Traceback" in record.exc_text and record.name == "paged_backend.sampling.user_processors"


def test_the_queue_is_bounded(folder: Path, process: LLM) -> None:
    """Decided here, without asking the process; what it tells then makes room again."""
    client = process._client
    desk = client._desk
    config = dataclasses.replace(client.config.scheduler, max_num_seqs=8, max_num_queued_reqs=4)
    before, desk._admission._config = desk._admission._config, config
    try:
        with pause(client):
            streams = [client.submit([5], LONG) for _ in range(12)]
            with pytest.raises(QueueFullError, match="0 running, 12 waiting") as raised:
                client.submit([5], LONG)
            assert raised.value.retry_after_s >= 1
            assert client.stats().num_waiting == 12
            for stream in streams:
                assert stream.abort()
        assert {stream.collect().outputs[0].finish_reason for stream in streams} == {"abort"}
        assert len(client.submit([5], QUICK).collect().outputs[0].token_ids) == 3
    finally:
        desk._admission._config = before
    assert 'reason="max_num_queued_reqs"} 1.0' in client.metrics_text()


def test_a_process_that_hangs_is_seen_and_holds_nobody_up(client: EngineClient) -> None:
    client.check_health(stall_timeout_s=0.0)
    with pause(client):
        prompt = [5] * 100
        streams = [client.submit(prompt, SamplingParams(max_tokens=2, seed=i)) for i in range(600)]
        wait_until(lambda: client.stats().heartbeat_age_s > 0.2)
        with pytest.raises(EngineUnavailableError, match="no step"):
            client.check_health(stall_timeout_s=0.1)
        assert "vllm:num_requests_waiting" in client.metrics_text()
        client.check_health(stall_timeout_s=60)
        for stream in streams[1:]:
            stream.abort()
    assert streams[0].collect().finished
    for stream in streams:
        stream.collect()
    wait_until(lambda: client.stats().heartbeat_age_s == 0)


def test_ids_deadlines_and_aborts(client: EngineClient) -> None:
    with pause(client):
        stream = client.submit([5], LONG, request_id="mine", tenant="a")
        with pytest.raises(InvalidRequestError, match="already in use"):
            client.submit([5], LONG, request_id="mine", tenant="a")
        client.abort("mine", tenant="b")
        other = client.submit([5], LONG, request_id="mine", tenant="b")
        client.abort("mine", tenant="b")
    assert other.collect().outputs[0].finish_reason == "abort"
    assert stream.collect().outputs[0].finish_reason == "length"
    assert not stream.abort()
    late = client.submit(
        [5], LONG, timeout_s=0.001 + client._desk._admission._pace.compute_s(1, 200, num_running=1, budget=64)
    )
    output = late.collect().outputs[0]
    assert (output.finish_reason, output.stop_reason) in (("abort", "timeout"), ("length", None))


def test_maps_and_metrics(client: EngineClient) -> None:
    before = client.stats()
    stream = client.submit([5] * 9, dataclasses.replace(LONG, max_tokens=150))
    next(stream)
    kv_map = client.stats(kv_map=True).kv_map
    assert kv_map is not None and len(kv_map.states) == 90
    (sequence,) = kv_map.sequences
    assert sequence.request_id == stream.request_id and sequence.num_computed_tokens >= 9
    stream.collect()
    after = client.stats()
    assert after.generation_tokens - before.generation_tokens == 150
    assert after.num_steps - before.num_steps >= 150
    text = client.metrics_text()
    for name in ("inter_token_latency_seconds", "time_to_first_token_seconds", "e2e_request_latency_seconds"):
        assert f"vllm:{name}_count" in text
    labels = '{engine="0",model_name="' + client.config.model.served_model_name[0] + '"}'
    assert f"vllm:iteration_tokens_total_count{labels} {after.num_steps}.0" in text
    assert f"vllm:generation_tokens_total{labels} {after.generation_tokens}.0" in text
    assert f"vllm:kv_block_lifetime_seconds_count{labels}" in text


def test_signals_to_the_group_do_not_end_it(client: EngineClient) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(engine_of(client).pid, number)
    assert len(client.submit([5], QUICK).collect().outputs[0].token_ids) == 3


def test_it_drains_and_stops(process: LLM) -> None:
    """The last one that uses it."""
    client, pid = process._client, engine_of(process._client).pid
    streams = [client.submit([5], QUICK) for _ in range(3)]
    assert client.drain(TIMEOUT_S)
    with pytest.raises(EngineUnavailableError, match="draining"):
        client.submit([5], QUICK)
    assert all(len(stream.collect().outputs[0].token_ids) == 3 for stream in streams)
    client.shutdown()
    client.shutdown()
    assert not psutil.pid_exists(pid)
    assert engine_of(client)._process is not None and engine_of(client)._process.returncode == 0
    stats = client.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_used_blocks, stats.heartbeat_age_s) == (0, 0, 0, 0)
    with pytest.raises(EngineUnavailableError, match="shutting down"):
        client.submit([5], QUICK)
    with pytest.raises(EngineUnavailableError, match="shutting down"):
        client.stats(kv_map=True)
