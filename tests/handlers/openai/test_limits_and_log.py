"""A key's limits and the access log, through the service's routes."""

from __future__ import annotations

import asyncio
import gc
import json
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from paged_backend.errors import EngineUnavailableError, QueueFullError
from paged_backend.handlers.access.api_key import keys_from_config
from paged_backend.handlers.access.gate import Gate
from paged_backend.handlers.access.key_ring import KeyRing
from paged_backend.handlers.access.limits import KeyLimits, RequestLimits
from paged_backend.handlers.openai.access_log import AccessLog, beginning_of_json
from paged_backend.handlers.openai.served_models import ServedModels
from paged_backend.handlers.openai.service import HttpRequest, OpenAIService
from tests.handlers.openai.conftest import read

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
COMPLETIONS = "/v1/completions"
ANN, BOB = ({"authorization": f"Bearer {secret}"} for secret in ("hunter2", "other"))


def serve(client, *, lines=None, prompts=False, request_limits=None, **limits):
    gate = Gate(KeyRing(keys_from_config({"ann": "hunter2", "bob": "other"})), {"ann": KeyLimits(**limits)})
    log = None if lines is None else AccessLog(prompts=prompts, write=lambda line, _: lines.append(line))
    models = ServedModels.one(client, ("tiny",))
    return OpenAIService(models, gate=gate, access_log=log, request_limits=request_limits)


def fields_of(line):
    return dict(part.split("=", 1) for part in shlex.split(line))


class TestLimits:
    def test_requests_at_once(self, client):
        client.hang_after = 1
        service = serve(client, max_concurrent_requests=2)

        async def ask(headers, prompt):
            return await service.handle(
                HttpRequest(COMPLETIONS, headers=headers, body={"prompt": prompt, "stream": True})
            )

        async def scenario():
            both = await ask(ANN, ["x", "y"])
            assert both.status == 200
            refused = await read(await ask(ANN, "z"))
            assert refused.status == 429 and refused.headers["Retry-After"] == "1"
            assert "max_concurrent_requests" in refused.error["message"]
            other = await ask(BOB, "z")
            assert other.status == 200
            for response in (both, other):
                await response.stream.aclose()
            again = await ask(ANN, "z")
            assert again.status == 200
            await again.stream.aclose()

        asyncio.run(scenario())
        assert len(client.submissions) == 4

    def test_more_prompts_than_ever_at_once(self, call, client):
        reply = call(COMPLETIONS, {"prompt": ["x"] * 3}, headers=ANN, service=serve(client, max_concurrent_requests=2))
        assert reply.status == 400 and reply.error["param"] == "prompt"

    def test_tokens_a_minute(self, call, client):
        service = serve(client, tokens_per_minute=50)
        body = {"prompt": "12345", "max_tokens": 40}
        # Of 46 reserved, 6 + 3 are used ("Hi0"), and the rest comes back.
        assert call(COMPLETIONS, body, headers=ANN, service=service).json["usage"]["total_tokens"] == 9
        refused = call(COMPLETIONS, body, headers=ANN, service=service)
        assert refused.status == 429 and 5 <= int(refused.headers["Retry-After"]) <= 7
        assert "tokens_per_minute" in refused.error["message"]
        assert call(COMPLETIONS, {**body, "max_tokens": 30}, headers=ANN, service=service).status == 200
        assert call(COMPLETIONS, body, headers=BOB, service=service).status == 200

    def test_what_the_engine_refuses_costs_nothing(self, call, client):
        client.submit_errors = {0: QueueFullError("full", retry_after_s=3, reason="max_num_queued_reqs")}
        service = serve(client, max_concurrent_requests=1, requests_per_minute=1)
        for _ in range(3):
            assert call(COMPLETIONS, {"prompt": "x"}, headers=ANN, service=service).headers["Retry-After"] == "3"
        client.submit_errors = {}
        assert call(COMPLETIONS, {"prompt": "x"}, headers=ANN, service=service).status == 200

    def test_what_they_refuse_is_counted_by_key_and_limit(self, call, client):
        client.submit_errors = {1: QueueFullError("full", retry_after_s=3, reason="max_num_queued_reqs")}
        service = serve(client, requests_per_minute=1, tokens_per_minute=10_000, max_concurrent_requests=1)

        def counts():
            text = call("/metrics", service=service).body.decode()
            families = text_string_to_metric_families(text.partition("\n")[2])
            return {
                (sample.labels["key"], sample.labels["reason"]): sample.value
                for family in families
                for sample in family.samples
                if sample.name == "vllm:key_limit_rejections_total"
            }

        assert counts() == {}
        call(COMPLETIONS, {"prompt": "x"}, headers=BOB, service=service)  # who has no limits
        statuses = [call(COMPLETIONS, {"prompt": "x"}, headers=ANN, service=service).status for _ in range(2)]
        assert statuses == [429, 429], "the engine's own, which cost nothing"
        client.submit_errors = {}
        statuses = [call(COMPLETIONS, {"prompt": "x"}, headers=ANN, service=service).status for _ in range(4)]
        assert statuses == [200, 429, 429, 429]
        refused = {("ann", "requests_per_minute"): 3.0, ("ann", "tokens_per_minute"): 0.0}
        assert counts() == {**refused, ("ann", "max_concurrent_requests"): 0.0}
        assert call(COMPLETIONS, {"prompt": ["x", "y"]}, headers=ANN, service=service).status == 400
        assert counts()["ann", "max_concurrent_requests"] == 0.0, "more than ever is no 429"

    @pytest.mark.parametrize(
        ("path", "body", "param"),
        [
            (COMPLETIONS, {"prompt": "x", "n": 4}, "n"),
            (COMPLETIONS, {"prompt": ["x"] * 4}, "prompt"),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}] * 4}, "messages"),
            ("/tokenize", {"messages": [{"role": "user", "content": "x"}] * 4}, "messages"),
            (COMPLETIONS, b'{"prompt": "x", "user": ' + b"[" * 20 + b"]" * 20 + b"}", "body"),
        ],
    )
    def test_one_request_that_is_too_large(self, call, client, path, body, param):
        limits = RequestLimits(max_n=3, max_prompts=3, max_messages=3, max_json_depth=10)
        reply = call(path, body, headers=ANN, service=serve(client, request_limits=limits))
        assert reply.status == 400 and reply.error["param"] == param and not client.submissions


class TestAccessLog:
    def test_a_line_for_each_request_without_key_or_prompt(self, call, client):
        lines = []
        service = serve(client, lines=lines)
        body = {"prompt": ["secret prompt", "and more"], "max_tokens": 2}
        reply = call(COMPLETIONS, body, headers=ANN, service=service, method="POST")
        call(COMPLETIONS, {**body, "stream": True}, headers=BOB, service=service)
        call(COMPLETIONS, body, headers={}, service=service)
        call("/v1/models", headers=ANN, service=service)
        call("/health", service=service)
        call("/metrics", service=service)
        first, second, third, fourth = map(fields_of, lines)
        assert first["request_id"] == reply.json["id"] and first["key"] == "ann"
        assert (first["method"], first["path"], first["status"]) == ("POST", COMPLETIONS, "200")
        assert (first["prompt_tokens"], first["output_tokens"]) == ("23", "4")
        assert 0 <= float(first["first_s"]) <= float(first["total_s"])
        assert (second["key"], second["status"], second["output_tokens"]) == ("bob", "200", "4")
        assert (third["key"], third["status"], third["request_id"]) == ("-", "401", "-")
        assert (fourth["path"], fourth["status"]) == ("/v1/models", "200")
        assert "hunter2" not in str(lines) and "secret" not in str(lines)

    def test_prompts_where_the_operator_wants_them(self, call, client):
        lines = []
        service = serve(client, lines=lines, prompts=True)
        call(COMPLETIONS, {"prompt": 'a "b"\nid=x'}, headers=ANN, service=service)
        messages = [{"role": "user", "content": "c"}]
        call("/v1/chat/completions", {"messages": messages}, headers=ANN, service=service)
        one, other = (json.loads(line.partition(" prompt=")[2]) for line in lines)
        assert json.loads(one) == 'a "b"\nid=x' and json.loads(other) == messages

    def test_nothing_that_a_client_sends_makes_a_line_or_a_field_of_its_own(self, call, client):
        lines = []
        service = serve(client, lines=lines)
        call("/v1/x\nid=1 key=root", headers=ANN, service=service)
        call(COMPLETIONS, {"prompt": "x", "request_id": "a key=root b"}, headers=ANN, service=service)
        assert not any("\n" in line for line in lines)
        assert [fields_of(line)["key"] for line in lines] == ["ann", "ann"]
        assert fields_of(lines[1])["request_id"] == "cmpl-a key=root b"

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_client_that_leaves(self, client, stream):
        lines = []
        client.hang_after = 1
        service = serve(client, lines=lines)

        async def scenario():
            request = HttpRequest(COMPLETIONS, headers=ANN, body={"prompt": "x", "stream": stream})
            task = asyncio.create_task(service.handle(request))
            while not client.streams:
                await asyncio.sleep(0)
            await asyncio.sleep(0.01)
            if stream:
                response = await task
                await response.stream.__anext__()
                assert not lines
                await response.stream.aclose()
                await response.stream.aclose()
            else:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

        asyncio.run(scenario())
        (fields,) = map(fields_of, lines)
        assert fields["status"] == "499" and fields["prompt_tokens"] == "2"

    @pytest.mark.parametrize("path", [COMPLETIONS, "/v1/chat/completions", "/v1/responses", "/v1/messages"])
    @pytest.mark.parametrize(
        ("failure", "error"), [(EngineUnavailableError("lost"), "503"), (RuntimeError("x"), "500")]
    )
    def test_a_stream_that_ends_with_an_error_says_so(self, call, client, path, failure, error):
        lines = []
        service = serve(client, lines=lines)
        client.fail_after, client.failure = 1, failure
        content = {
            COMPLETIONS: {"prompt": "x"},
            "/v1/responses": {"input": "x"},
        }.get(path, {"messages": [{"role": "user", "content": "x"}]})
        body = {**content, "max_tokens": 9} if path != "/v1/responses" else content
        reply = call(path, {**body, "stream": True}, headers=ANN, service=service)
        assert reply.status == 200 and b"error" in reply.body
        (fields,) = map(fields_of, lines)
        assert (fields["status"], fields["error"], fields["output_tokens"]) == ("200", error, "1")

    def test_one_that_ends_well_has_no_error(self, call, client):
        lines = []
        call(COMPLETIONS, {"prompt": "x", "stream": True}, headers=ANN, service=serve(client, lines=lines))
        assert "error" not in fields_of(lines[0])

    def test_a_fault_of_the_writers_own(self, client, monkeypatch):
        lines = []
        service = serve(client, lines=lines)

        async def scenario():
            response = await service.handle(HttpRequest(COMPLETIONS, headers=ANN, body={"prompt": "x", "stream": True}))
            monkeypatch.setattr("paged_backend.handlers.openai.streaming.ChunkFrames.frames", lambda *_: 1 / 0)
            monkeypatch.setattr("paged_backend.handlers.openai.streaming.ChunkFrames.failure", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await response.stream.__anext__()

        asyncio.run(scenario())
        (fields,) = map(fields_of, lines)
        assert (fields["status"], fields["error"]) == ("200", "500")

    @pytest.mark.parametrize("loop_is_open", [True, False])
    def test_a_stream_that_nobody_reads_or_closes(self, client, loop_is_open):
        lines = []
        service = serve(client, lines=lines)

        async def scenario():
            request = HttpRequest(COMPLETIONS, headers=ANN, body={"prompt": "x", "stream": True})
            left = [await service.handle(request)]
            if not loop_is_open:
                return left
            del left[0]
            gc.collect()
            await asyncio.sleep(0)
            return None

        left = asyncio.run(scenario())
        assert len(lines) == loop_is_open
        del left
        gc.collect()
        (fields,) = map(fields_of, lines)
        assert fields["status"] == "499" and client.streams[0].num_aborts == 1

    def test_a_long_prompt_is_cut_before_it_is_written(self, call, client):
        lines = []
        service = serve(client, lines=lines, prompts=True)
        call(COMPLETIONS, {"prompt": "x" * 50_000}, headers=ANN, service=service)
        assert fields_of(lines[0])["prompt"].count("x") == 9_999

    @given(JSON_VALUES, st.integers(0, 80))
    def test_the_beginning_of_a_prompts_json(self, value, most):
        assert beginning_of_json(value, most) == json.dumps(value)[:most]

    def test_no_more_of_a_prompt_is_looked_at_than_is_kept(self):
        class Watched(list):
            num_read = 0

            def __iter__(self):
                for item in super().__iter__():
                    self.num_read += 1
                    yield item

        watched = Watched(range(1000))
        assert beginning_of_json({"a": [watched, "y" * 10**6]}, 30) == '{"a": [[0, 1, 2, 3, 4, 5, 6, 7'
        assert watched.num_read <= 9
