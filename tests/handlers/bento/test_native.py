"""The native API between BentoML and the engine: the OpenAI routes' own checks, and a free event loop."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
from typing import Any

import pytest
from pydantic import ValidationError

from paged_backend.errors import EngineUnavailableError, InvalidRequestError
from paged_backend.handlers.access.gate import Caller
from paged_backend.handlers.access.limits import KeyLimits
from paged_backend.handlers.access.quota import LimitError, Quota
from paged_backend.handlers.bento import native
from paged_backend.handlers.bento.edge import Exchange
from paged_backend.handlers.bento.native_types import ChatMessage, GenerateRequest, as_invalid_request
from paged_backend.handlers.openai.access_log import AccessLog
from paged_backend.handlers.openai.served_models import ServedModel, ServedModels
from paged_backend.sampling_params import SamplingParams, StructuredOutputsParams
from tests.handlers.openai.conftest import FakeClient, call, client, service

__all__ = ["call", "client", "service"]  # fixtures

MESSAGE = {"role": "user", "content": "x"}


ANN = Exchange(Caller("me", "me"), trace_headers={"traceparent": "00-1-2-01"})


def served(client: FakeClient) -> ServedModel:
    return ServedModel(client, ("tiny",))  # type: ignore[arg-type]


def submit(client: FakeClient, **fields: Any) -> dict[str, Any]:
    """What the engine is given for a body."""
    request = GenerateRequest.from_body(json.dumps(fields).encode())
    asyncio.run(native.submit(served(client), request, ANN))
    return client.submissions[-1]


@pytest.mark.parametrize(
    ("fields", "token_ids"),
    [
        ({"prompt": "ab"}, [1, 97, 98]),
        ({"prompt": "ab", "add_special_tokens": False}, [97, 98]),
        ({"prompt_token_ids": [5, 6]}, [5, 6]),
        ({"messages": [MESSAGE]}, [ord(character) for character in "[user]x[assistant]"]),
    ],
)
def test_the_engine_gets_token_ids(fields: dict[str, Any], token_ids: list[int]) -> None:
    assert submit(FakeClient(), **fields)["prompt"] == token_ids


@pytest.mark.parametrize("fields", [{"prompt": "a" * 5000}, {"messages": [{**MESSAGE, "content": "a" * 5000}]}])
def test_a_long_prompt_is_encoded_beside_the_event_loop(fields: dict[str, Any]) -> None:
    client = FakeClient(max_model_len=10_000)
    threads = []
    assert client.tokenizer is not None
    encode = client.tokenizer.encode

    def record(text: str, add_special_tokens: bool = True) -> list[int]:
        threads.append(threading.current_thread())
        return encode(text, add_special_tokens)

    client.tokenizer.encode = record  # type: ignore[method-assign]
    submit(client, **fields)
    assert threads and threading.main_thread() not in threads


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "x", "logprobs": -2}, "logprobs"),
        ({"prompt": "x", "request_id": "a\nb"}, "request_id"),
        ({"prompt": "x", "priority": 2**63}, "priority"),
        ({"prompt": "x", "cache_salt": "\ud800"}, "cache_salt"),
        ({"prompt": "x", "stop": "\ud800"}, "stop"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": "x" * 101}, "prompt"),
        ({"prompt_token_ids": [1] * 101}, "prompt_token_ids"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content"),
        ({"messages": [MESSAGE] * 101}, "messages"),
        ({"messages": []}, "messages"),
    ],
)
def test_refusals(fields: dict[str, Any], param: str) -> None:
    client = FakeClient()
    client.config = client.config.from_args(scheduling_policy="priority")
    # Past pydantic, which refuses some of them in its own words where it reads JSON.
    if "messages" in fields:
        fields = {"messages": [ChatMessage.model_construct(**message) for message in fields["messages"]]}
    request = GenerateRequest.model_construct(**{**GenerateRequest().model_dump(), **fields})
    with pytest.raises(InvalidRequestError) as caught:
        asyncio.run(native.submit(served(client), request, Exchange()))
    assert caught.value.param == param and not client.submissions


def test_without_a_tokenizer() -> None:
    client = FakeClient(tokenizer=None)
    with pytest.raises(InvalidRequestError, match="send token ids"):
        submit(client, prompt="x")
    assert submit(client, prompt_token_ids=[5])["prompt"] == [5]


def test_the_engines_refusal_names_the_field() -> None:
    client = FakeClient(submit_errors={0: InvalidRequestError("no", param="prompt")})
    with pytest.raises(InvalidRequestError) as caught:
        submit(client, prompt_token_ids=[5])
    assert caught.value.param == "prompt_token_ids"


def test_a_request_takes_from_its_keys_quota_and_is_logged_without_its_prompt() -> None:
    lines: list[str] = []
    quota = Quota(KeyLimits(max_concurrent_requests=1), "ann")
    client = FakeClient()

    async def scenario() -> None:
        record = AccessLog(write=lambda line, _: lines.append(line)).begin("POST", "/generate")
        exchange = Exchange(Caller("ann", "tenant", quota), record)
        model = served(client)
        stream = await native.submit(model, GenerateRequest(prompt="secret"), exchange)
        assert quota.num_live == 1
        with pytest.raises(LimitError):
            await native.submit(model, GenerateRequest(prompt="x"), Exchange(exchange.caller))
        await native.collect(stream)
        assert quota.num_live == 0
        record.response_ends(200)

    asyncio.run(scenario())
    (line,) = lines
    assert f"id={client.submissions[0]['request_id']} " in line and "prompt_tokens=7 output_tokens=3" in line
    assert "secret" not in line


@pytest.mark.parametrize(("asked", "given"), [(None, 7), (100, 7), (5, 5)])
def test_the_operators_bound_holds_here_too(asked: int | None, given: int) -> None:
    client = FakeClient(max_model_len=200, default_sampling_params={"max_tokens": 7})
    assert submit(client, prompt="abc", max_tokens=asked)["params"].max_tokens == given
    free = submit(FakeClient(max_model_len=200), prompt="abc", max_tokens=asked)["params"]
    assert free.max_tokens == (196 if asked is None else asked), "null is as many as fit"


VALUES: dict[str, Any] = {
    "n": 2,
    "best_of": 3,
    "temperature": 0.5,
    "top_k": 4,
    "top_p": 0.5,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.2,
    "seed": 5,
    "stop": ["a", "b"],
    "stop_token_ids": [6],
    "include_stop_str_in_output": True,
    "ignore_eos": True,
    "max_tokens": 9,
    "min_tokens": 2,
    "repetition_detection": {"max_pattern_size": 3, "min_count": 2},
    "logprobs": 2,
    "prompt_logprobs": 3,
    "logprob_token_ids": [7, 8],
    "logit_bias": {"5": 1.5},
    "allowed_token_ids": [1, 2],
    "bad_words": ["c"],
    "bad_words_token_ids": [[1, 2]],
    "logits_processors": ["a.b:c"],
    "structured_outputs": {"regex": "a+"},
    "skip_reading_prefix_cache": True,
    "detokenize": False,
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "stream_interval": 4,
    "use_beam_search": True,
    "length_penalty": 2.0,
    "early_stopping": "never",
}
BESIDE: dict[str, dict[str, Any]] = {
    "best_of": {"n": 2},
    "logprob_token_ids": {"logprobs": 1},
    "length_penalty": {"use_beam_search": True},
    "early_stopping": {"use_beam_search": True},
}


def test_no_parameter_of_the_engines_is_missing() -> None:
    assert set(VALUES) == {field.name for field in dataclasses.fields(SamplingParams)}
    assert set(VALUES) <= set(GenerateRequest.model_fields)


@pytest.mark.parametrize("name", VALUES)
def test_the_engine_gets_what_was_asked_for(name: str) -> None:
    given = {**BESIDE.get(name, {}), name: VALUES[name]}
    expected = {**given}
    if name == "logit_bias":
        expected = {"logit_bias": {5: 1.5}}
    if name == "structured_outputs":
        expected = {"structured_outputs": StructuredOutputsParams(regex="a+")}
    if name == "logprob_token_ids":
        del expected["logprobs"]
    assert submit(FakeClient(), prompt="x", **given)["params"] == SamplingParams(**{"max_tokens": 16, **expected})


@pytest.mark.parametrize("name", VALUES)
def test_null_is_not_given(name: str) -> None:
    plain = submit(FakeClient(max_model_len=18), prompt="x")
    assert submit(FakeClient(max_model_len=18), prompt="x", **{name: None})["params"] == plain["params"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 1.0, "top_k": 0, "max_tokens": 40},
        {"max_tokens": 4, "seed": 3, "bad_words": ["x"]},
        {"use_beam_search": True},
        {"response_format": {"type": "json_object"}, "stop": "a"},
        {"truncate_prompt_tokens": 2, "truncation_side": "right"},
    ],
)
def test_a_completion_of_the_same_fields_is_the_same_work(
    fields: dict[str, Any], call: Any, client: FakeClient
) -> None:
    client.default_sampling_params = {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1, "max_tokens": 30}
    assert call("/v1/completions", {"prompt": "abc", **fields}).status == 200
    native_one, completion = submit(client, prompt="abc", **fields), client.submissions[0]
    for key in ("prompt", "params", "priority", "cache_salt", "timeout_s"):
        assert native_one[key] == completion[key]


def test_the_engine_learns_of_the_trace_and_the_tenant() -> None:
    submitted = submit(FakeClient(), prompt="x")
    assert (submitted["tenant"], submitted["trace_headers"]) == ("me", {"traceparent": "00-1-2-01"})


@pytest.mark.parametrize("fields", [{"prompt_logprobs": 1}, {"use_beam_search": True}, {"n": 1, "best_of": 2}])
def test_what_cannot_be_streamed(fields: dict[str, Any]) -> None:
    client = FakeClient()
    with pytest.raises(InvalidRequestError):
        asyncio.run(native.submit(served(client), GenerateRequest(prompt="x", **fields), ANN, streams=True))
    assert not client.submissions


def test_python_callers_may_give_numbers_as_the_keys_of_biases() -> None:
    assert GenerateRequest(prompt="x", logit_bias={5: 1.5}).logit_bias == {"5": 1.5}  # type: ignore[dict-item]


@pytest.mark.parametrize("body", [b"{", b"[1]", b"5", b"null ,", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_object(body: bytes) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        GenerateRequest.from_body(body)
    assert caught.value.param == "body"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1E999"])
@pytest.mark.parametrize("field", ["temperature", "logit_bias", "structured_outputs", "seed"])
def test_what_json_has_no_numbers_for(number: str, field: str) -> None:
    value = number if field in ("temperature", "seed") else f'{{"5": {number}}}'
    with pytest.raises(InvalidRequestError, match="The body is not valid JSON") as caught:
        GenerateRequest.from_body(f'{{"prompt": "x", "{field}": {value}}}'.encode())
    assert caught.value.param == "body"


def test_of_many_wrong_biases_few_are_told() -> None:
    body = json.dumps({"prompt": "x", "logit_bias": dict.fromkeys(map(str, range(5000)), "wrong")})
    with pytest.raises(ValidationError) as caught:
        GenerateRequest.model_validate_json(body)
    assert caught.value.error_count() <= 1000
    assert as_invalid_request(caught.value, GenerateRequest).param == "body.logit_bias.0"


def test_the_page_explains_every_field() -> None:
    schema = GenerateRequest.model_json_schema()
    assert all(field.get("description") for field in schema["properties"].values())
    assert "logits" in schema["properties"]["temperature"]["description"]


def test_prompt_logprobs_are_in_the_answer() -> None:
    async def scenario() -> Any:
        return await native.collect(await native.submit(served(FakeClient()), request, ANN))

    request = GenerateRequest(prompt="ab", prompt_logprobs=1)
    response = asyncio.run(scenario())
    first, second, third = response.prompt_logprobs
    assert first is None and (second[0].token_id, third[0].token_id) == (97, 98)


def test_a_request_is_found_by_its_id_until_it_is_over() -> None:
    async def scenario() -> None:
        client = FakeClient(hang_after=1)
        model = served(client)
        models = ServedModels([model])
        request = GenerateRequest(prompt="x", request_id="mine")
        stream = await native.submit(model, request, ANN)
        with pytest.raises(InvalidRequestError, match="already in use"):
            await native.submit(model, request, ANN)
        whole = asyncio.ensure_future(native.collect(stream))
        await asyncio.sleep(0.01)
        assert models.cancel("other", ["mine"]) == [] and models.cancel("me", ["mine"]) == ["mine"]
        assert [sample.finish_reason for sample in (await whole).outputs] == ["abort"]
        assert not len(model.live) and len(client.submissions) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(("failure", "status"), [(EngineUnavailableError("lost"), 503), (RuntimeError("secret"), 500)])
def test_a_fault_is_the_streams_last_frame_and_in_the_access_log(failure: Exception, status: int) -> None:
    logged: list[dict[str, Any]] = []

    async def scenario() -> list[str]:
        record = AccessLog(prompts=True, write=lambda _, fields: logged.append(dict(fields))).begin("POST", "/x")
        client = FakeClient(fail_after=1, failure=failure)
        exchange = Exchange(ANN.caller, record)
        messages = [ChatMessage(role="user", content="hello")]
        stream = await native.submit(served(client), GenerateRequest(messages=messages), exchange, streams=True)
        sent = [frame async for frame in native.frames(stream, record)]
        record.response_ends(200)
        return sent

    *_, last, done = asyncio.run(scenario())
    assert done == native.DONE and json.loads(last[6:])["error"]["code"] == status and "secret" not in last
    (fields,) = logged
    assert (fields["status"], fields["error"]) == (200, status)
    assert json.loads(fields["prompt"]) == [{"role": "user", "content": "hello"}]
