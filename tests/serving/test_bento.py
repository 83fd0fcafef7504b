"""BentoML for real: one server, the `openai` client, clients that leave, workers that die."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import yaml

from tests.serving.bento_host import TEST_MODEL, BentoHost, metric_value, sse
from tests.serving.processes import free_ports, kill_tree, process_tree, wait_until

MODEL = "paged-tiny"
BUSY: dict[str, Any] = {"n": 48, "max_tokens": 480, "temperature": 0.9, "seed": 1, "ignore_eos": True}
"""Enough work to be still running whenever a test looks."""

DRAIN_TIMEOUT_S = 3.0
BODY_TIMEOUT_S = 2.0


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BentoHost]:
    server = {"drain_timeout_s": DRAIN_TIMEOUT_S, "max_body_bytes": 100_000}
    deployment = {"server": server, "bento": {"body_timeout_s": BODY_TIMEOUT_S}}
    with BentoHost(tmp_path_factory.mktemp("bento"), deployment) as host:
        yield host


@pytest.fixture(scope="module")
def client(host: BentoHost) -> Iterator[openai.OpenAI]:
    host.wait_ready()
    with openai.OpenAI(base_url=f"{host.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def error_of(response: httpx.Response, status: int, kind: str, param: str | None = None) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == (kind, status)
    if param is not None:
        assert error["param"] == param
    return error


class TestReadiness:
    """First in this file: the server is still starting."""

    def test_before_the_engine_is_there(self, host: BentoHost) -> None:
        wait_until(lambda: host.status("/livez") == 200, timeout_s=60, what="/livez")
        assert host.status("/readyz") == 503
        for path in ("/health", "/v1/models"):
            error = error_of(httpx.get(f"{host.url}{path}"), 503, "ServiceUnavailableError")
            assert "starting" in error["message"]
        for path in ("/generate", "/generate_stream", "/v1/completions"):
            body = {"prompt": "a"}
            error_of(host.post(path, body), 503, "ServiceUnavailableError")
        assert host.status("/readyz") == 503

    def test_and_after(self, host: BentoHost, client: openai.OpenAI) -> None:
        assert {host.status(path) for path in ("/livez", "/readyz", "/health", "/version")} == {200}
        assert [model.id for model in client.models.list()] == [MODEL]


class TestOpenAI:
    def test_completions_streamed_and_not(self, client: openai.OpenAI) -> None:
        arguments: dict[str, Any] = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}
        whole = client.completions.create(**arguments)
        assert whole.usage is not None and 0 < whole.usage.completion_tokens <= 12
        chunks = list(client.completions.create(**arguments, stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
        assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason

    def test_chat_streamed_and_not(self, client: openai.OpenAI) -> None:
        arguments: dict[str, Any] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "What is 2 + 3?"}],
            "max_tokens": 12,
            "temperature": 0,
        }
        whole = client.chat.completions.create(**arguments)
        chunks = list(client.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-1].usage == whole.usage or chunks[-1].usage is not None

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

    def test_tokenize_and_back(self, host: BentoHost, client: openai.OpenAI) -> None:
        tokens = host.post("/tokenize", {"model": MODEL, "prompt": "a fox"}).json()["tokens"]
        back = host.post("/detokenize", {"model": MODEL, "tokens": tokens})
        assert back.json()["prompt"] == "a fox"


COMPLETION = {"model": MODEL, "prompt": "a", "max_tokens": 2}


class TestErrors:
    @pytest.mark.parametrize(
        ("path", "body", "status", "kind", "param"),
        [
            ("/v1/completions", {**COMPLETION, "temperature": -1}, 400, "BadRequestError", "temperature"),
            ("/v1/completions", {**COMPLETION, "max_tokens": "x"}, 400, "BadRequestError", "body.max_tokens"),
            ("/v1/completions", {**COMPLETION, "temprature": 1}, 400, "BadRequestError", "temprature"),
            ("/v1/completions", {**COMPLETION, "model": "other"}, 404, "NotFoundError", "model"),
            ("/v1/completions", {**COMPLETION, "prompt": "word " * 5000}, 400, "BadRequestError", "prompt"),
            ("/v1/completions", {**COMPLETION, "prompt": []}, 400, "BadRequestError", None),
            ("/v1/nothing", {}, 404, "NotFoundError", None),
            ("/generate", {"prompt": "a", "temperature": -1}, 400, "BadRequestError", "temperature"),
            ("/generate", {"prompt": "a", "max_tokens": "x"}, 400, "BadRequestError", "body.max_tokens"),
            ("/generate", {"prompt": "a", "temprature": 1}, 400, "BadRequestError", "temprature"),
            ("/generate", {"prompt": "a", "prompt_token_ids": [1]}, 400, "BadRequestError", "prompt_token_ids"),
            ("/generate", {"prompt_token_ids": []}, 400, "BadRequestError", "prompt_token_ids"),
            ("/generate", {"prompt": "word " * 5000}, 400, "BadRequestError", "prompt"),
            ("/generate", {}, 400, "BadRequestError", "prompt"),
            ("/generate_stream", {"prompt": "a", "n": 0}, 400, "BadRequestError", "n"),
            ("/generate_stream", {"prompt": 5}, 400, "BadRequestError", "body.prompt"),
            ("/abort", {}, 400, "BadRequestError", "body.request_id"),
        ],
    )
    def test_a_wrong_body(
        self, host: BentoHost, client: openai.OpenAI, path: str, body: Any, status: int, kind: str, param: str | None
    ) -> None:
        error_of(host.post(path, body), status, kind, param)

    @pytest.mark.parametrize("path", ["/v1/completions", "/generate", "/generate_stream"])
    @pytest.mark.parametrize("body", [b'{"prompt": ', b"[1]", b"\xff", b'{"prompt": "x", "temperature": NaN}'])
    def test_no_json_object(self, host: BentoHost, client: openai.OpenAI, path: str, body: bytes) -> None:
        error_of(httpx.post(f"{host.url}{path}", content=body), 400, "BadRequestError", "body")

    @pytest.mark.parametrize("path", ["/v1/completions", "/generate"])
    def test_a_body_too_large(self, host: BentoHost, client: openai.OpenAI, path: str) -> None:
        def chunks() -> Iterator[bytes]:
            for _ in range(20):
                yield b"x" * 10_000

        error_of(httpx.post(f"{host.url}{path}", content=b"x" * 100_001), 413, "ContentTooLargeError")
        error_of(httpx.post(f"{host.url}{path}", content=chunks()), 413, "ContentTooLargeError")

    @pytest.mark.parametrize("path", ["/v1/completions", "/generate"])
    def test_a_body_that_does_not_come_to_its_end(self, host: BentoHost, client: openai.OpenAI, path: str) -> None:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
        with socket.create_connection(("127.0.0.1", host.port), timeout=60) as connection:
            connection.sendall(head.encode() + b'{"prompt": "')
            answer = b"".join(iter(lambda: connection.recv(65_536), b""))  # until the server has closed it
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "RequestTimeoutError"

    @pytest.mark.parametrize("path", ["/v1/completions", "/generate"])
    def test_a_wrong_method(self, host: BentoHost, client: openai.OpenAI, path: str) -> None:
        error_of(httpx.get(f"{host.url}{path}"), 405, "MethodNotAllowedError")

    def test_the_log_holds_no_traceback_and_no_prompt(self, host: BentoHost, client: openai.OpenAI) -> None:
        host.post("/generate", {"prompt": "my secret", "max_tokens": "x"})
        for content_type in ("application/vnd.bentoml+pickle", "multipart/form-data; boundary=x", "text/plain"):
            for path in ("/generate", "/generate_stream", "/abort"):
                headers = {"Content-Type": content_type}
                answer = httpx.post(f"{host.url}{path}", content=b"my secret", headers=headers)
                error_of(answer, 400, "BadRequestError", "body")
        log = host.log_file.read_text()
        assert "Traceback" not in log and "my secret" not in log
        assert log.count(" is loaded; CPU threads: ") == 1


class TestNative:
    def test_generate(self, host: BentoHost, client: openai.OpenAI) -> None:
        body = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0, "logprobs": 2, "request_id": "mine"}
        answer = host.post("/generate", body).json()
        assert answer["request_id"] == "mine" and answer["num_prompt_tokens"] > 0
        (sample,) = answer["outputs"]
        assert len(sample["logprobs"]) == len(sample["token_ids"]) <= 8
        assert sample["logprobs"][0][0]["token_id"] == sample["token_ids"][0]
        same = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=8, temperature=0)
        assert sample["text"] == same.choices[0].text

    def test_what_an_output_must_look_like(self, host: BentoHost, client: openai.OpenAI) -> None:
        sampling = {"max_tokens": 40, "seed": 3, "structured_outputs": {"regex": "[0-9]{4}-[ab]{3}"}}
        for prompt in ({"prompt": "Once"}, {"messages": [{"role": "user", "content": "Hello"}]}):
            (sample,) = host.post("/generate", {**prompt, **sampling}).json()["outputs"]
            assert re.fullmatch("[0-9]{4}-[ab]{3}", sample["text"]), sample
        scored = host.post("/generate", {"prompt": "Once upon", "max_tokens": 1, "prompt_logprobs": 2}).json()
        assert len(scored["prompt_logprobs"]) == scored["num_prompt_tokens"] and scored["prompt_logprobs"][0] is None
        refused = host.post("/generate_stream", {"prompt": "Once", "structured_outputs": {"regex": "("}})
        error_of(refused, 400, "BadRequestError", "structured_outputs")

    def test_token_ids_and_messages(self, host: BentoHost, client: openai.OpenAI) -> None:
        tokens = host.post("/tokenize", {"prompt": "Once upon a time"}).json()["tokens"]
        sampling = {"max_tokens": 8, "temperature": 0}
        by_ids = host.post("/generate", {"prompt_token_ids": tokens, **sampling}).json()
        by_text = host.post("/generate", {"prompt": "Once upon a time", **sampling}).json()
        assert by_ids["outputs"] == by_text["outputs"]
        messages: Any = [{"role": "user", "content": "Hello"}]
        chat = host.post("/generate", {"messages": messages, **sampling}).json()
        same = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=8, temperature=0)
        assert chat["outputs"][0]["text"] == same.choices[0].message.content

    def test_stream(self, host: BentoHost, client: openai.OpenAI) -> None:
        body = {"prompt": "Once upon a time", "n": 2, "max_tokens": 8, "temperature": 0.8, "seed": 4}
        whole = host.post("/generate", body).json()
        response = host.post("/generate_stream", body)
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.text.startswith(": ping\n\n")
        *frames, done = sse(response.text)
        assert done == "[DONE]" and [frame["finished"] for frame in frames].index(True) == len(frames) - 1
        for index in range(2):
            parts = [part for frame in frames for part in frame["outputs"] if part["index"] == index]
            assert "".join(part["text"] for part in parts) == whole["outputs"][index]["text"]
            assert parts[-1]["finish_reason"] == whole["outputs"][index]["finish_reason"]

    def test_abort_by_id(self, host: BentoHost, client: openai.OpenAI) -> None:
        body = {"prompt": "Once", "request_id": "long-one", **BUSY}
        with httpx.stream("POST", f"{host.url}/generate_stream", json=body, timeout=30) as response:
            lines = response.iter_lines()
            while '"token_ids"' not in next(lines):
                pass
            assert host.post("/abort", {"request_id": "long-one"}).json() == {"request_id": "long-one"}
            frames = sse("\n".join(lines))
        assert frames[-1] == "[DONE]"
        assert {part["finish_reason"] for part in frames[-2]["outputs"]} == {"abort"}

    def test_swagger_shows_it(self, host: BentoHost, client: openai.OpenAI) -> None:
        page = httpx.get(f"{host.url}/docs.json").json()
        assert {"/generate", "/generate_stream", "/abort"} <= set(page["paths"])
        fields = page["components"]["schemas"]["GenerateRequest"]["properties"]
        assert fields["max_tokens"]["default"] == 16 and "logits" in fields["temperature"]["description"]
        assert {"prompt", "prompt_token_ids", "messages", "max_tokens", "seed"} <= set(fields)
        assert host.status("/") == 200


def test_metrics_carry_vllm_names_once(host: BentoHost, client: openai.OpenAI) -> None:
    text = httpx.get(f"{host.url}/metrics").text
    samples = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(samples) == len(set(samples))
    types = [line for line in text.splitlines() if line.startswith("# TYPE ")]
    assert len(types) == len({line.split()[2] for line in types})
    assert "pid=" not in text.partition("vllm:")[2]
    assert "bentoml_service_request_total" in text
    assert metric_value(text, "vllm:generation_tokens_total", model_name=MODEL) > 0
    assert "vllm:num_requests_running{" in text


class TestClientsThatLeave:
    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v1/completions", {"model": MODEL, "prompt": "Once", "stream": True, **BUSY}),
            ("/v1/completions", {"model": MODEL, "prompt": "Once", **BUSY}),
            (
                "/v1/chat/completions",
                {"model": MODEL, "messages": [{"role": "user", "content": "Tell a story."}], "stream": True, **BUSY},
            ),
            ("/generate", {"prompt": "Once", **BUSY}),
            ("/generate_stream", {"prompt": "Once", **BUSY}),
        ],
    )
    def test_nothing_runs_on_for_nobody(
        self, host: BentoHost, client: openai.OpenAI, path: str, body: dict[str, Any]
    ) -> None:
        aborted = host.metric("vllm:request_success_total", finished_reason="abort")
        content = json.dumps(body).encode()
        with socket.create_connection(("127.0.0.1", host.port)) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
            connection.sendall(head.encode() + content)
            host.wait_busy()
        host.wait_idle(timeout_s=2)
        assert host.metric("vllm:request_success_total", finished_reason="abort") > aborted

    def test_a_stream_beside_them_is_undisturbed(self, host: BentoHost, client: openai.OpenAI) -> None:
        arguments: dict[str, Any] = {
            "model": MODEL,
            "prompt": "Once upon a time",
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

    def test_a_killed_worker_is_replaced(self, host: BentoHost, client: openai.OpenAI) -> None:
        worker = host.worker()
        arguments: dict[str, Any] = {
            "n": BUSY["n"],
            "max_tokens": BUSY["max_tokens"],
            "extra_body": {"ignore_eos": True},
        }
        chunks = iter(client.completions.create(model=MODEL, prompt="Once", stream=True, **arguments))
        next(chunks)
        worker.kill()
        killed_s = time.monotonic()
        with pytest.raises((openai.APIError, httpx.TransportError)):
            for _ in chunks:
                pass
        assert time.monotonic() - killed_s < 2
        # Sent at once: it waits in the socket's queue until there is a worker again, then for the engine.
        wait_until(lambda: host.status("/readyz") == 200, timeout_s=60, what="another worker", interval_s=0.2)
        assert host.worker().pid != worker.pid
        answer = client.completions.create(model=MODEL, prompt="Once", max_tokens=2, temperature=0)
        assert answer.choices[0].finish_reason is not None

    def test_sigterm_ends_streams_with_an_error_and_the_server_in_time(
        self, host: BentoHost, client: openai.OpenAI
    ) -> None:
        body = {"model": MODEL, "prompt": "Once", "stream": True, **BUSY}
        received: list[str] = []

        def read() -> None:
            with httpx.stream("POST", f"{host.url}/v1/completions", json=body, timeout=60) as response:
                received.extend(response.iter_lines())

        reader = threading.Thread(target=read)
        reader.start()
        host.wait_busy()
        host.process.send_signal(signal.SIGTERM)
        wait_until(lambda: host.status("/health") == 503, timeout_s=DRAIN_TIMEOUT_S, what="the drain")
        for answer in (httpx.get(f"{host.url}/health"), host.post("/v1/completions", {**body, "stream": False})):
            assert "draining" in error_of(answer, 503, "ServiceUnavailableError")["message"]
        assert (host.status("/readyz"), host.status("/livez")) == (503, 200)
        took_s = host.wait_gone(timeout_s=DRAIN_TIMEOUT_S + 10)
        reader.join(5)
        frames = sse("\n".join(received))
        assert frames[-1] == "[DONE]"
        assert frames[-2]["error"]["type"] == "ServiceUnavailableError"
        assert DRAIN_TIMEOUT_S * 0.9 < took_s < DRAIN_TIMEOUT_S + 6

    def test_it_starts_again_and_stops_when_idle(self, host: BentoHost) -> None:
        host.start()
        host.wait_ready()
        answer = host.post("/generate", {"prompt": "Once", "max_tokens": 2})
        assert answer.status_code == 200
        host.process.send_signal(signal.SIGTERM)
        assert host.wait_gone(timeout_s=15) < 8


class TestFailedStarts:
    def test_a_model_that_cannot_be_loaded_ends_the_server_and_says_why(self, tmp_path: Path) -> None:
        deployment = {"engine": {"model": str(tmp_path / "nothing-here")}}
        with BentoHost(tmp_path, deployment) as host:
            host.process.wait(timeout=60)
            log = host.log_file.read_text()
        assert "could not be loaded" in log and "nothing-here" in log
        assert log.count("could not be loaded") == 1  # no loop

    def test_a_wrong_configuration_ends_it_at_once(self, tmp_path: Path) -> None:
        with BentoHost(tmp_path, {"sever": {}}) as host:
            assert host.process.wait(timeout=60) != 0
            assert "Did you mean 'server'?" in host.log_file.read_text()


class TestLauncher:
    def test_it_tells_when_it_is_ready_and_its_curl_line_works(self, tmp_path: Path) -> None:
        (port,) = free_ports(1)
        file = tmp_path / "deployment.yaml"
        server = {"port": port, "drain_timeout_s": 1}
        engine = {"model": TEST_MODEL, "num_threads": 1}
        file.write_text(yaml.safe_dump({"name": MODEL, "engine": engine, "server": server}))
        code = (
            "import sys\n"
            "from paged_backend.handlers.bento.launch import serve\n"
            "from paged_backend.handlers.deployment import Deployment\n"
            f"sys.exit(serve(Deployment.load({str(file)!r})))"
        )
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as launcher:
            try:
                assert launcher.stdout is not None
                lines = iter(launcher.stdout)
                assert "Ready: paged-tiny" in next(line for line in lines if "Ready" in line)
                curl = next(line for line in lines if line.startswith("curl "))
                answer = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=60, check=True)
                assert json.loads(answer.stdout)["choices"][0]["message"]["content"]
                children = process_tree(launcher.pid)[1:]
                launcher.send_signal(signal.SIGTERM)
                assert launcher.wait(timeout=20) == 0
                assert not psutil.wait_procs(children, timeout=2)[1]
            finally:
                kill_tree(launcher.pid)
