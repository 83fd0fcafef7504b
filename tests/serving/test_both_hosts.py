"""The conformance list, sent to both live hosts: what they answer is what the service answers without a host."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.conformance.case import COMPLETIONS, MODEL, Case, request
from tests.conformance.exchange import Caller
from tests.conformance.reply import Reply
from tests.conformance.rows import ROWS
from tests.conformance.transports import Live
from tests.serving.conftest import Host

HOSTS = ("bentoml", "torchserve")
NUM_CLIENTS = 4
TIMEOUT_S = 60
CHAT = [{"role": "user", "content": "Hello, who are you?"}]


@pytest.fixture(scope="module")
def urls(both_hosts: dict[str, Host]) -> tuple[str, ...]:
    return tuple(both_hosts[host].url for host in HOSTS)


@pytest.fixture(scope="module")
def replies(urls: tuple[str, ...]) -> dict[str, dict[str, Reply]]:
    """What each host answers to the conformance list, by the row's name; several clients ask at a time."""
    return {host: _ask_all(url) for host, url in zip(HOSTS, urls, strict=True)}


def _ask_all(url: str) -> dict[str, Reply]:
    with Live(url) as server, ThreadPoolExecutor(NUM_CLIENTS) as pool:
        replies = pool.map(lambda case: server.send(case.method, case.path, case.content), ROWS)
        return {case.name: reply for case, reply in zip(ROWS, replies, strict=True)}


@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.name)
def test_same_answer(replies: dict[str, dict[str, Reply]], in_process: Caller, case: Case) -> None:
    """As the service answers without a host, which tests/conformance checks."""
    expected = in_process.ask(case.method, case.path, case.body).reply.told
    for host in HOSTS:
        if host == "torchserve" and case.needs_method:
            continue
        assert replies[host][case.name].told == expected, host


def test_errors_do_not_disturb_a_stream_beside_them(urls: tuple[str, ...]) -> None:
    wrong = [
        request(COMPLETIONS, **fields)
        for fields in ({"temperature": -1}, {"prompt": [100] * 5000}, {"n": 9}, {"n": "x"})
    ]
    stream = Case("", COMPLETIONS, request(COMPLETIONS, True, max_tokens=200, ignore_eos=True))
    for url in urls:
        with Live(url) as server, ThreadPoolExecutor(1) as pool:
            alone = server.send("POST", COMPLETIONS, stream.content).told
            beside = pool.submit(server.send, "POST", COMPLETIONS, stream.content)
            replies = [server.send("POST", COMPLETIONS, Case("", "", body).content) for body in wrong * 5]
            assert beside.result().told == alone
        assert {reply.status for reply in replies} == {400}


def metrics(url: str) -> dict[str, float]:
    """The first model's metrics by name; of requests that ended, those that were cut off."""
    values: dict[str, float] = {}
    text = httpx.get(f"{url}/metrics", timeout=TIMEOUT_S).raise_for_status().text
    for name, labels, value in re.findall(r"^vllm:(\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        is_ours = f'model_name="{MODEL}"' in labels
        if is_ours and (name != "request_success_total" or 'finished_reason="abort"' in labels):
            values[name] = float(value)
    return values


def ends(url: str, path: str, body: dict[str, Any], stream: bool) -> tuple[list[dict[str, Any]], int]:
    """How each sample ended, and how many tokens there were of all."""
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    response = httpx.post(f"{url}{path}", json={**body, **options}, timeout=TIMEOUT_S)
    assert response.status_code == 200, response.text
    if not stream:
        return response.json()["choices"], response.json()["usage"]["completion_tokens"]
    frames = [frame.removeprefix("data: ") for frame in response.text.strip().split("\n\n")]
    assert frames.pop() == "[DONE]"
    chunks = [json.loads(frame) for frame in frames]
    last = {choice["index"]: choice for chunk in chunks for choice in chunk["choices"]}
    return list(last.values()), chunks[-1]["usage"]["completion_tokens"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["completion", "chat", "beams"])
def test_a_deadline_that_passes_while_it_runs(urls: tuple[str, ...], kind: str, stream: bool) -> None:
    """It ends with what it has and says why, and all that it held is free again."""
    if kind == "beams" and stream:
        pytest.skip("beams are not streamed")
    # Nothing ends it before, but it might be over in time for all that the engine can know, so it is not refused.
    body = {"model": MODEL, "n": 4, "max_tokens": 1900, "ignore_eos": True, "stop": ["never said by anyone"]}
    body |= {"messages": CHAT} if kind == "chat" else {"prompt": "Once upon a time"}
    body |= {"use_beam_search": True} if kind == "beams" else {}
    path = "/v1/chat/completions" if kind == "chat" else "/v1/completions"
    for url in urls:
        before = metrics(url)
        num_requests, num_tokens, timeout_s = 0, 0, 0.25
        while not num_tokens:  # a busy machine may need longer for the first of them
            choices, num_tokens = ends(url, path, {**body, "timeout_s": timeout_s}, stream)
            assert [(one["finish_reason"], one["stop_reason"]) for one in choices] == [("abort", "timeout")] * 4
            num_requests, timeout_s = num_requests + 1, 2 * timeout_s
        now = metrics(url)
        assert now["request_success_total"] - before["request_success_total"] == num_requests
        assert now["generation_tokens_total"] - before["generation_tokens_total"] == num_tokens
        assert [now[name] for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")] == [
            0
        ] * 3
