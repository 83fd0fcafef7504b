"""One list of requests, sent to both live hosts: the same statuses, types and bodies, ids and times aside."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.serving.conftest import Host

MODEL = "paged-tiny"
TIMEOUT_S = 60
CHAT = [{"role": "user", "content": "Hello, who are you?"}]
GREEDY = {"model": MODEL, "temperature": 0, "max_tokens": 12}
RESPONSE = {"model": MODEL, "temperature": 0, "max_output_tokens": 12, "input": "Hello, who are you?"}


@dataclass(frozen=True)
class Call:
    """One request: what is sent where. `body` is sent as JSON, or as it is where it is bytes."""

    name: str
    path: str
    body: Any = None
    method: str = "POST"


def completion(name: str, **fields: Any) -> Call:
    return Call(name, "/v1/completions", {**GREEDY, "prompt": "Once upon a time", **fields})


def chat(name: str, **fields: Any) -> Call:
    return Call(name, "/v1/chat/completions", {**GREEDY, "messages": CHAT, **fields})


CALLS = (
    Call("models", "/v1/models", method="GET"),
    Call("one model", f"/v1/models/{MODEL}", method="GET"),
    Call("no such model", "/v1/models/other", method="GET"),
    Call("version", "/version", method="GET"),
    Call("tokenize", "/tokenize", {"model": MODEL, "prompt": "Once upon a time"}),
    Call("tokenize messages", "/tokenize", {"model": MODEL, "messages": CHAT}),
    Call("detokenize", "/detokenize", {"model": MODEL, "tokens": [100, 101, 102]}),
    completion("completion"),
    completion("completion stream", stream=True),
    completion("completion stream usage", stream=True, stream_options={"include_usage": True}),
    completion("logprobs", logprobs=3),
    completion("logprobs stream", logprobs=2, stream=True),
    completion("several samples", n=3, temperature=0.9, seed=5),
    completion("best of several samples", n=1, best_of=3, temperature=0.9, seed=5),
    completion("beams", use_beam_search=True, n=3, logprobs=2, length_penalty=0.6, early_stopping="never"),
    completion("beams with a stop string", use_beam_search=True, best_of=4, stop=[" a"], max_tokens=30),
    completion("beams with penalties", use_beam_search=True, n=2, repetition_penalty=1.3, min_tokens=3),
    completion("beams stream", use_beam_search=True, n=2, stream=True),
    completion("best of, stream", best_of=2, stream=True),
    completion("beams drawn", use_beam_search=True, n=2, temperature=0.5),
    completion("several samples stream", n=2, temperature=0.9, seed=5, stream=True, max_tokens=4),
    completion("several prompts", prompt=["Once upon", "The fox", "A"]),
    completion("token ids", prompt=[100, 101, 102]),
    completion("several token ids", prompt=[[100, 101], [102]]),
    completion("echo", echo=True),
    completion("stop string", stop=[" a"], max_tokens=40),
    completion("stop string shown", stop=[" a"], max_tokens=40, include_stop_str_in_output=True),
    completion("min tokens", min_tokens=12, ignore_eos=True),
    completion("sampling", temperature=0.8, top_k=20, top_p=0.9, min_p=0.01, seed=3),
    completion("penalties", repetition_penalty=1.2, presence_penalty=0.5, frequency_penalty=0.5),
    completion("bias", logit_bias={"200": 50}, allowed_token_ids=[200, 201, 202]),
    completion("token ids returned", return_token_ids=True),
    chat("chat"),
    chat("chat stream", stream=True),
    chat("chat stream usage", stream=True, stream_options={"include_usage": True}),
    chat("chat logprobs", logprobs=True, top_logprobs=2),
    chat("chat parts", messages=[{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]),
    chat("chat several", n=2, temperature=0.7, seed=9),
    chat("chat beams", use_beam_search=True, n=2, logprobs=True, top_logprobs=1),
    chat("chat max_completion_tokens", max_completion_tokens=3),
    chat("own request id", request_id="mine"),
    completion("negative temperature", temperature=-1),
    completion("negative temperature, stream", temperature=-1, stream=True),
    completion("too many stops", stop=list("abcde")),
    completion("top_p", top_p=1.5),
    completion("n", n=9),
    completion("time enough", timeout_s=600),
    completion("no time", timeout_s=0),
    chat("time of a wrong type, stream", timeout_s="1", stream=True),
    completion("empty prompt", prompt=""),
    completion("no tokens", prompt=[]),
    completion("token outside the vocabulary", prompt=[10_000_000]),
    completion("prompt too long", prompt=[100] * 5000),
    completion("prompt too long, stream", prompt=[100] * 5000, stream=True),
    completion("max_tokens too large", max_tokens=100_000),
    completion("unknown model", model="other"),
    completion("unknown field", temprature=1),
    completion("unsupported field", suffix="x"),
    completion("wrong type", prompt=5),
    completion("stream options without stream", stream_options={"include_usage": True}),
    chat("no messages", messages=[]),
    chat("wrong role", messages=[{"role": "wizard", "content": "x"}]),
    chat("image", messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
    chat("tools", tools=[{"type": "function", "function": {"name": "f"}}]),
    Call("response", "/v1/responses", {**RESPONSE, "instructions": "Be kind.", "metadata": {"a": "b"}}),
    Call("response stream", "/v1/responses", {**RESPONSE, "stream": True, "top_logprobs": 2}),
    Call("response, too much", "/v1/responses", {**RESPONSE, "max_output_tokens": 100_000}),
    Call("response of another", "/v1/responses", {**RESPONSE, "previous_response_id": "resp_1", "stream": True}),
    Call("message", "/v1/messages", {**GREEDY, "messages": CHAT, "system": "Be kind."}),
    Call("message stream", "/v1/messages", {**GREEDY, "messages": CHAT, "stream": True}),
    Call("message without bound", "/v1/messages", {"messages": CHAT}),
    Call("message of another model", "/v1/messages", {**GREEDY, "messages": CHAT, "model": "claude", "stream": True}),
    Call("message malformed", "/v1/messages", b"{"),
    Call("tokens of a message", "/v1/messages/count_tokens", {"messages": CHAT, "system": "Be kind."}),
    Call("cancel nothing", "/v1/cancel", {"id": "chatcmpl-unknown"}),
    Call("cancel what", "/v1/cancel", {}),
    Call("the document", "/openapi.json", method="GET"),
    Call("malformed", "/v1/completions", b'{"model": "paged-tiny", '),
    Call("a list", "/v1/completions", [1, 2]),
    Call("a string", "/v1/chat/completions", "text"),
    Call("no body", "/v1/completions", b""),
    Call("unknown route", "/v1/unknown", {"a": 1}),
    Call("too deep", "/v1/completions", b'{"prompt": "x", "user": ' + b"[" * 128 + b"]" * 128 + b"}"),
    Call("far too deep", "/v1/completions", b"[" * 200_000),
    completion("too many samples", n=129),
    completion("too long a stop string", stop="x" * 1001),
    completion("too many prompts", prompt=["x"] * 2049),
    chat("too many messages", messages=CHAT * 4097),
    completion("a path for a model", model="../../../etc/passwd"),
)


@pytest.fixture
def urls(both_hosts: dict[str, Host]) -> tuple[str, str]:
    return both_hosts["bentoml"].url, both_hosts["torchserve"].url


def answer(url: str, call: Call) -> dict[str, Any]:
    content = call.body if isinstance(call.body, bytes) or call.body is None else json.dumps(call.body).encode()
    response = httpx.request(
        call.method,
        f"{url}{call.path}",
        content=content,
        headers={"content-type": "application/json"} if content is not None else {},
        timeout=TIMEOUT_S,
    )
    return {
        "status": response.status_code,
        "content type": response.headers["content-type"].split(";")[0],
        "body": normalise(response.text),
    }


def normalise(text: str) -> Any:
    """The body with its ids and times taken out; a stream as its joined chunks."""
    text = re.sub(r'"(id|request_id|item_id)":"(cmpl-|chatcmpl-|resp_|msg_|rs_)[0-9a-f-]{32,}', r'"\1":"\2', text)
    text = re.sub(r'"(created|created_at|completed_at)":\d+', r'"\1":0', text)
    if text.startswith("event: "):
        return text.split("\n\n")
    if not text.startswith("data: "):
        return json.loads(text)
    frames = [frame.removeprefix("data: ") for frame in text.strip().split("\n\n")]
    assert frames[-1] == "[DONE]"
    return sorted(frames)  # the chunks of several samples may be packed differently


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_same_answer(urls: tuple[str, str], call: Call) -> None:
    bento, torchserve = (answer(url, call) for url in urls)
    assert bento == torchserve
    if bento["status"] >= 400 and call.path.startswith("/v1/messages"):
        assert set(bento["body"]) == {"type", "error"} and set(bento["body"]["error"]) == {"type", "message"}
    elif bento["status"] >= 400:
        assert set(bento["body"]) == {"error"}
        assert set(bento["body"]["error"]) == {"message", "type", "param", "code"}
        assert bento["body"]["error"]["code"] == bento["status"]


def test_errors_do_not_disturb_a_stream_beside_them(urls: tuple[str, str]) -> None:
    wrong = [call for call in CALLS if call.name in ("negative temperature", "prompt too long", "malformed", "n")]
    stream = completion("stream", stream=True, max_tokens=200, ignore_eos=True)
    for url in urls:
        alone = answer(url, stream)
        with ThreadPoolExecutor(2) as pool:
            beside = pool.submit(answer, url, stream)
            statuses = {answer(url, call)["status"] for call in wrong * 5}
            assert beside.result() == alone
        assert statuses == {400}


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
def test_a_deadline_that_passes_while_it_runs(urls: tuple[str, str], kind: str, stream: bool) -> None:
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
