"""Routes, authentication and limits, the same for every body."""

from __future__ import annotations

import asyncio
import logging

import pytest

from paged_backend import __version__
from paged_backend.errors import (
    DeadlineError,
    EngineUnavailableError,
    InvalidRequestError,
    NotFoundError,
    QueueFullError,
    RequestFailedError,
)
from paged_backend.handlers.openai.served_models import ServedModels
from paged_backend.handlers.openai.service import HttpRequest, OpenAIService
from tests.handlers.openai.conftest import gate_of

COMPLETIONS = "/v1/completions"
BODY = {"prompt": "x"}


@pytest.fixture
def locked(client):
    return OpenAIService(ServedModels.one(client, ("tiny",)), gate=gate_of("s3cret", "other"))


def test_models(call):
    reply = call("/v1/models", method="GET")
    assert reply.json["object"] == "list"
    assert [model["id"] for model in reply.json["data"]] == ["tiny", "alias"]
    assert reply.json["data"][0]["max_model_len"] == 100
    assert call("/v1/models/alias", method="GET").json["id"] == "alias"
    error = call("/v1/models/other", method="GET").error
    assert error["message"] == "The model `other` does not exist." and error["param"] == "model"


def test_model_names_with_slashes(call, client):
    service = OpenAIService(ServedModels.one(client, ("org/name",)))
    assert call("/v1/models/org/name", service=service).json["id"] == "org/name"
    assert call("/v1/models/org%2Fname", service=service).json["id"] == "org/name"


def test_health(call, client):
    assert (call("/health", method="GET").status, call("/health").json) == (200, {})
    client.health_error = EngineUnavailableError("draining")
    reply = call("/health", method="GET")
    assert reply.status == 503
    assert reply.error["type"] == "ServiceUnavailableError" and reply.error["message"] == "draining"


def test_version_and_metrics(call):
    assert call("/version", method="GET").json == {"version": __version__}
    reply = call("/metrics", method="GET")
    assert reply.body == b"vllm:num_requests_running 0.0\n"
    assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")


def test_tokenize(call, client):
    assert call("/tokenize", {"prompt": "ab"}).json == {
        "count": 3,
        "max_model_len": 100,
        "tokens": [1, 97, 98],
        "token_strs": None,
    }
    without = call("/tokenize", {"prompt": "ab", "add_special_tokens": False, "return_token_strs": True}).json
    assert without["tokens"] == [97, 98] and without["token_strs"] == ["a", "b"]
    chat = call("/tokenize", {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}).json
    assert call("/detokenize", {"tokens": chat["tokens"]}).json == {"prompt": "[user]x[assistant]"}
    assert call("/detokenize", {"tokens": [1, 97]}).json == {"prompt": "<s>a"}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, "body.prompt"),
        ("/tokenize", {"promt": "a"}, "promt"),
        ("/detokenize", {}, "body.tokens"),
        ("/detokenize", {"tokens": [2**40]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": ["1"]}, "body.tokens.0"),
    ],
)
def test_tokenize_refusals(call, path, body, param):
    reply = call(path, body)
    assert reply.status == 400 and reply.error["param"] == param


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", COMPLETIONS, 405, "POST"),
        ("GET", "/v1/chat/completions", 405, "POST"),
        ("DELETE", "/v1/models", 405, "GET"),
        ("POST", "/v1/models/tiny", 405, "GET"),
        ("POST", "/health", 405, "GET"),
        ("HEAD", "/health", 200, None),
        ("GET", "/v1/models/", 200, None),
        ("GET", "/v1/models?limit=1", 200, None),
        (None, "/v1/models", 200, None),
        ("POST", "/v1/embeddings", 404, None),
        (None, "/", 404, None),
    ],
)
def test_methods_and_unknown_routes(call, method, path, status, allow):
    reply = call(path, method=method)
    assert reply.status == status and reply.headers.get("Allow") == allow
    if status >= 400:
        assert reply.error["type"] == {404: "NotFoundError", 405: "MethodNotAllowedError"}[status]


@pytest.mark.parametrize("path", [COMPLETIONS, "/v1/chat/completions", "/tokenize", "/detokenize"])
@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"",
        b"\xff\xfe\xfa",
        b"[1]",
        b"3",
        b"null",
        b"[" * 100_000,
        [],
        ["x"],
        "text",
        None,
        b'{"n": 1' * 9,
    ],
)
def test_what_is_no_json_object(call, path, body):
    reply = call(path, body)
    assert reply.status == 400
    assert reply.error["type"] == "BadRequestError" and reply.error["param"] == "body"


@pytest.mark.parametrize("body", [BODY, b'{"prompt": "x"}', '{"prompt": "x"}', bytearray(b'{"prompt": "x"}')])
def test_body_may_be_parsed_already_or_not(call, body):
    assert call(COMPLETIONS, body).status == 200


@pytest.mark.parametrize("path", [COMPLETIONS, "/v1/chat/completions"])
def test_unknown_model(call, path):
    reply = call(path, {"model": "gpt-9", "prompt": "x"} if path == COMPLETIONS else {"model": "gpt-9", "messages": []})
    assert reply.status == 404
    assert reply.error == {
        "message": "The model `gpt-9` does not exist.",
        "type": "NotFoundError",
        "param": "model",
        "code": 404,
    }


def test_body_too_large(call, client):
    service = OpenAIService(ServedModels.one(client, ("tiny",)), max_body_bytes=20)
    assert call(COMPLETIONS, b'{"prompt": "1234567"}', service=service).status == 413
    assert call(COMPLETIONS, b'{"prompt": "123456"}', service=service).status == 200
    reply = call(COMPLETIONS, BODY, headers={"content-length": "21"}, service=service)
    assert reply.status == 413 and reply.error["type"] == "ContentTooLargeError"


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Basic s3cret",
        "s3cret",
        "Bearer s3cret2",
        "Bearer s\u00e9cret",
    ],
)
@pytest.mark.parametrize("path", [COMPLETIONS, "/v1/models", "/version", "/tokenize", "/nowhere"])
def test_no_or_wrong_key(call, locked, path, authorization):
    headers = {} if authorization is None else {"authorization": authorization}
    reply = call(path, BODY, headers=headers, service=locked)
    assert reply.status == 401 and reply.headers["WWW-Authenticate"] == "Bearer"
    assert reply.error["type"] == "AuthenticationError" and "s3cret" not in reply.error["message"]


@pytest.mark.parametrize("path", ["/health", "/metrics"])
def test_probes_and_scrapers_need_no_key(call, locked, path):
    assert call(path, method="GET", service=locked).status == 200


def test_preflights_need_no_key(call, locked):
    reply = call(COMPLETIONS, method="OPTIONS", service=locked)
    assert reply.status == 405 and reply.headers["Allow"] == "POST"


def test_a_missing_body_says_how_to_send_one(call):
    for body in (None, b""):
        assert "Content-Type: application/json" in call(COMPLETIONS, body).error["message"]


def test_each_key_is_a_tenant(call, client, locked):
    headers = {"authorization": "Bearer s3cret"}
    assert call(COMPLETIONS, BODY, headers=headers, service=locked).status == 200
    assert call("/health", service=locked).status == 200
    call(COMPLETIONS, BODY, headers={"authorization": "bearer other"}, service=locked)
    call(COMPLETIONS, {**BODY, "cache_salt": "mine"}, headers=headers, service=locked)
    first, second, third = client.submissions
    assert first["tenant"] and "s3cret" not in first["tenant"]
    assert second["tenant"] not in (None, first["tenant"])
    assert (third["tenant"], third["cache_salt"]) == (first["tenant"], "mine")
    # Another server, or the same one restarted, knows it under the same name.
    again = OpenAIService(ServedModels.one(client, ("tiny",)), gate=gate_of("s3cret"))
    call(COMPLETIONS, BODY, headers=headers, service=again)
    assert client.submissions[3]["tenant"] == first["tenant"]


def test_an_open_server_knows_no_tenants(call, client):
    call(COMPLETIONS, BODY, headers={"authorization": "Bearer whatever"})
    assert client.submissions[0]["tenant"] is None


@pytest.mark.parametrize(
    ("error", "status", "kind", "headers"),
    [
        (InvalidRequestError("no", param="n"), 400, "BadRequestError", {}),
        (NotFoundError("no", param="n"), 404, "NotFoundError", {}),
        (QueueFullError("full", retry_after_s=1.2, reason="x"), 429, "TooManyRequestsError", {"Retry-After": "2"}),
        (QueueFullError("full", retry_after_s=0, reason="x"), 429, "TooManyRequestsError", {"Retry-After": "1"}),
        (
            DeadlineError("late", retry_after_s=3, reason="timeout_s", param="timeout_s"),
            429,
            "TooManyRequestsError",
            {"Retry-After": "3"},
        ),
        (EngineUnavailableError("draining"), 503, "ServiceUnavailableError", {}),
        (RequestFailedError("secret detail"), 500, "InternalServerError", {}),
        (RuntimeError("secret detail"), 500, "InternalServerError", {}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_of_the_engine(call, client, caplog, error, status, kind, headers, stream):
    client.submit_errors = {0: error}
    with caplog.at_level(logging.ERROR):
        reply = call(COMPLETIONS, {**BODY, "stream": stream})
    assert reply.status == status and reply.error["type"] == kind
    assert headers.items() <= reply.headers.items()
    assert "secret" not in reply.body.decode()
    logged = [record for record in caplog.records if record.exc_info and "secret" in str(record.exc_info[1])]
    assert len(logged) == (status == 500)


@pytest.mark.parametrize("prompts", ["x", ["x", "y"]])
def test_a_failure_in_the_middle_aborts_all(call, client, prompts):
    client.fail_after = 1
    reply = call(COMPLETIONS, {"prompt": prompts})
    assert reply.status == 500 and "secret" not in reply.body.decode()
    assert all(stream.num_aborts for stream in client.streams)


@pytest.mark.parametrize("prompts", ["x", ["x", "y"]])
def test_cancelling_the_call_aborts(client, service, prompts):
    client.hang_after = 1

    async def scenario():
        task = asyncio.create_task(service.handle(HttpRequest(path=COMPLETIONS, body={"prompt": prompts})))
        while not client.streams:
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        assert not any(stream.num_aborts for stream in client.streams)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert client.streams and all(stream.num_aborts for stream in client.streams)


@pytest.mark.parametrize("path", [COMPLETIONS, "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_acceptance_is_told_once_when_all_prompts_are_in(service, client, path, stream):
    seen = []
    body = {"prompt": ["x", "y"]} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "x"}]}
    num_prompts = 2 if path == COMPLETIONS else 1
    request = HttpRequest(
        path, body={**body, "stream": stream}, on_accepted=lambda: seen.append(len(client.submissions))
    )

    async def exchange():
        response = await service.handle(request)
        if response.stream is not None:
            await response.stream.aclose()
        return response.status

    assert asyncio.run(exchange()) == 200
    assert seen == [num_prompts]


def test_a_refused_request_is_never_called_accepted(service, client):
    seen = []
    client.submit_errors = {1: QueueFullError("full", retry_after_s=1.0, reason="max_num_queued_reqs")}
    for body, status in (({"prompt": ["x", "y"]}, 429), ({"prompt": "x" * 200}, 400), ({}, 400)):
        request = HttpRequest(COMPLETIONS, body=body, on_accepted=lambda: seen.append(True))
        assert asyncio.run(service.handle(request)).status == status
    assert not seen


def test_surrogates_in_names_do_not_break_the_answer(call):
    reply = call(COMPLETIONS, {"prompt": "x", "model": "\ud800"})
    assert reply.status == 404 and reply.error["message"] == "The model `?` does not exist."


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1.5E+309"])
@pytest.mark.parametrize("place", ['"temperature": {}', '"user": [{{"a": {}}}]', '"no_such_field": {}'])
def test_what_is_no_number_in_json_is_refused(call, client, number, place):
    for form in (str, str.encode):
        reply = call(COMPLETIONS, form(f'{{"prompt": "x", {place.format(number)}}}'))
        assert (reply.status, reply.error["param"]) == (400, "body")
        assert "not valid JSON" in reply.error["message"]
    assert not client.submissions


def test_numbers_that_a_float_holds_are_taken(call):
    body = b'{"prompt": "x", "user": [1.7976931348623157e308, -0.0, 1e-400, 123456789012345678901234567890]}'
    assert call(COMPLETIONS, body).status == 200
