"""/v1/completions: what a body means, and what it answers."""

from __future__ import annotations

import pytest
from openai.types import Completion

from paged_backend.errors import InvalidRequestError, QueueFullError

PATH = "/v1/completions"


def test_whole_response(call, client):
    client.num_cached_tokens = 2
    reply = call(PATH, {"model": "alias", "prompt": "abc", "max_tokens": 50})
    assert reply.status == 200 and reply.headers["Content-Type"] == "application/json"
    body = reply.json
    Completion.model_validate(body)
    assert body["id"].startswith("cmpl-") and body["object"] == "text_completion" and body["model"] == "alias"
    assert body["choices"] == [
        {"index": 0, "text": "Hi0", "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    ]
    assert body["usage"] == {
        "prompt_tokens": 4,
        "completion_tokens": 3,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    assert client.submissions[0]["request_id"] == body["id"]


@pytest.mark.parametrize(
    ("prompt", "submitted"),
    [
        ("ab", [[1, 97, 98]]),
        (["ab", "c"], [[1, 97, 98], [1, 99]]),
        ([97, 98], [[97, 98]]),
        ([[97], [98, 99]], [[97], [98, 99]]),
    ],
)
def test_prompt_shapes(call, client, prompt, submitted):
    reply = call(PATH, {"prompt": prompt, "n": 2})
    assert reply.status == 200
    assert [submission["prompt"] for submission in client.submissions] == submitted
    assert [choice["index"] for choice in reply.json["choices"]] == list(range(2 * len(submitted)))
    assert [choice["text"] for choice in reply.json["choices"]] == ["Hi0", "Hi1"] * len(submitted)
    assert reply.json["usage"]["prompt_tokens"] == sum(map(len, submitted))
    assert reply.json["usage"]["completion_tokens"] == 6 * len(submitted)
    ids = [submission["request_id"] for submission in client.submissions]
    assert len(set(ids)) == len(ids)


def test_fields_reach_the_engine(call, client):
    fields = {
        "n": 2,
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": -0.2,
        "seed": 42,
        "max_tokens": 9,
        "min_tokens": 3,
        "stop_token_ids": [5],
        "include_stop_str_in_output": True,
        "ignore_eos": True,
        "allowed_token_ids": [5, 6],
        "skip_special_tokens": False,
        "logprobs": 3,
    }
    body = {**fields, "prompt": "x", "stop": "END", "logit_bias": {"50": -100, "7": 2.5}}
    more = {"request_id": "mine", "cache_salt": "salt", "timeout_s": 2.5}
    reply = call(PATH, {**body, **more})
    assert reply.status == 200 and reply.json["id"] == "cmpl-mine"
    submission = client.submissions[0]
    for name, value in fields.items():
        given = getattr(submission["params"], name)
        assert given == (tuple(value) if isinstance(value, list) else value), name
    assert submission["params"].stop == ("END",)
    assert dict(submission["params"].logit_bias) == {50: -100, 7: 2.5}
    assert submission["cache_salt"] == "salt" and submission["priority"] == 0
    assert submission["timeout_s"] == 2.5 and submission["tenant"] is None


def test_defaults(call, client):
    call(PATH, {"prompt": "x"})
    params = client.submissions[0]["params"]
    assert (params.max_tokens, params.n, params.temperature, params.logprobs) == (16, 1, 1.0, None)
    assert client.submissions[0]["cache_salt"] is None


def test_defaults_spelled_out_are_fine(call):
    body = {
        "prompt": "x",
        "best_of": 1,
        "n": 1,
        "early_stopping": False,
        "stop": None,
        "logit_bias": None,
        "suffix": None,
        "temperature": None,
        "use_beam_search": False,
        "length_penalty": 1.0,
        "spaces_between_special_tokens": True,
        "bad_words": [],
        "response_format": {"type": "text"},
        "structured_outputs": None,
        "user": "me",
        "store": False,
        "metadata": {"a": "b"},
        "stream_options": None,
    }
    assert call(PATH, body).status == 200


def test_echo(call):
    body = {"prompt": ["ab", "c"], "echo": True, "n": 2}
    assert [c["text"] for c in call(PATH, body).json["choices"]] == ["abHi0", "abHi1", "cHi0", "cHi1"]
    chunks = call(PATH, {**body, "stream": True}).chunks
    texts = ["", "", "", ""]
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == ["abHi0", "abHi1", "cHi0", "cHi1"]
    assert call(PATH, {"prompt": [97, 98], "echo": True}).json["choices"][0]["text"] == "abHi0"


def test_logprobs(call):
    logprobs = call(PATH, {"prompt": "x", "logprobs": 2}).json["choices"][0]["logprobs"]
    top = {"b": -0.5, "c": -1.0}
    assert logprobs == {
        "tokens": ["H", "i", "0"],
        "token_logprobs": [-1.5] * 3,
        "top_logprobs": [{**top, token: -1.5} for token in "Hi0"],
        "text_offset": [0, 1, 2],
    }
    sampled_only = call(PATH, {"prompt": "x", "logprobs": 0}).json["choices"][0]["logprobs"]
    assert sampled_only["top_logprobs"] == [{"H": -1.5}, {"i": -1.5}, {"0": -1.5}]
    all_of_them = call(PATH, {"prompt": "x", "logprobs": 20}).json["choices"][0]["logprobs"]
    assert all_of_them["top_logprobs"][0] == {"b": -0.5, "c": -1.0, "H": -1.5, "z": -9999.0}
    as_ids = {"prompt": "x", "logprobs": 0, "return_tokens_as_token_ids": True}
    assert call(PATH, as_ids).json["choices"][0]["logprobs"]["tokens"][0] == "token_id:72"


def test_streamed_logprobs_and_token_ids(call):
    body = {"prompt": "x", "logprobs": 0, "return_token_ids": True, "stream": True}
    choices = [chunk["choices"][0] for chunk in call(PATH, body).chunks]
    assert [choice["logprobs"]["text_offset"] for choice in choices] == [[0], [1], [2]]
    assert [choice["token_ids"] for choice in choices] == [[72], [105], [48]]
    assert choices[0]["prompt_token_ids"] == [1, 120] and "prompt_token_ids" not in choices[1]


def test_returned_token_ids(call):
    choice = call(PATH, {"prompt": "x", "return_token_ids": True}).json["choices"][0]
    assert choice["token_ids"] == [72, 105, 48] and choice["prompt_token_ids"] == [1, 120]


@pytest.mark.parametrize(
    ("fields", "submitted"),
    [
        ({"truncate_prompt_tokens": 2}, [99, 100]),
        ({"truncate_prompt_tokens": 2, "truncation_side": "right"}, [1, 97]),
        ({"truncate_prompt_tokens": -1}, [1, 97, 98, 99, 100]),
        ({"add_special_tokens": False}, [97, 98, 99, 100]),
    ],
)
def test_prompt_options(call, client, fields, submitted):
    assert call(PATH, {"prompt": "abcd", **fields}).status == 200
    assert client.submissions[0]["prompt"] == submitted


def test_truncation_to_what_fits(call, client):
    assert call(PATH, {"prompt": "a" * 500, "truncate_prompt_tokens": -1, "max_tokens": 30}).status == 200
    assert len(client.submissions[0]["prompt"]) == 70


def test_long_prompts_are_encoded_off_the_event_loop(call, client):
    client.max_model_len = 10_000
    assert call(PATH, {"prompt": "a" * 6_000}).status == 200
    assert len(client.submissions[0]["prompt"]) == 6_001


def test_length_limit_speaks_vllms_words(call):
    error = call(PATH, {"prompt": "a" * 90, "max_tokens": 20}).error
    assert error["message"] == (
        "This model's maximum context length is 100 tokens. However, you requested 111 tokens (91 in the "
        "prompt, 20 in the completion). Please reduce the length of the prompt or completion."
    )
    assert error["param"] == "max_tokens"
    error = call(PATH, {"prompt": "a" * 99, "max_tokens": 1}).error
    assert error["message"].startswith("This model's maximum context length is 100 tokens. However, your request")
    assert error["param"] == "prompt"
    assert call(PATH, {"prompt": "a" * 98, "max_tokens": 1}).status == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "body.prompt"),
        ({"prompt": 3}, "body.prompt"),
        ({"prompt": {"a": 1}}, "body.prompt"),
        ({"prompt": ["a", 1]}, "body.prompt"),
        ({"prompt": [1.5]}, "body.prompt"),
        ({"prompt": [True]}, "body.prompt"),
        ({"prompt": [-1]}, "body.prompt"),
        ({"prompt": [[1], "a"]}, "body.prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[1], []]}, "prompt"),
        ({"prompt": "", "add_special_tokens": False}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": ["x"] * 5000}, "prompt"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "1"}, "body.temperature"),
        ({"temperature": True}, "body.temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"n": "1"}, "body.n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "body.max_tokens"),
        ({"min_tokens": 17}, "min_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": 1}, "body.stop"),
        ({"stop": [1]}, "body.stop.0"),
        ({"stop": "\udc00"}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"1": "x"}}, "body.logit_bias.1"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": True}, "body.logprobs"),
        ({"max_tokens": 0, "logprobs": 1}, "max_tokens"),
        ({"n": 2, "best_of": 1}, "best_of"),
        ({"best_of": 2, "stream": True}, "stream"),
        ({"suffix": "end"}, "suffix"),
        ({"stream": "yes"}, "body.stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usages": True}}, "stream_options.include_usages"),
        ({"stream": True, "stream_options": 3}, "body.stream_options"),
        ({"priority": 1}, "priority"),
        ({"request_id": ""}, "request_id"),
        ({"request_id": "a\nb"}, "request_id"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 101}, "truncate_prompt_tokens"),
        ({"truncation_side": "middle"}, "truncation_side"),
        ({"use_beam_search": True, "stream": True}, "stream"),
        ({"use_beam_search": True, "temperature": 0.7}, "temperature"),
        ({"use_beam_search": True, "early_stopping": "always"}, "early_stopping"),
        ({"early_stopping": True}, "early_stopping"),
        ({"length_penalty": 2.0}, "length_penalty"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs"),
        ({"logprob_token_ids": [1]}, "logprob_token_ids"),
        ({"logprob_token_ids": [1] * 129, "logprobs": 0}, "logprob_token_ids"),
        ({"repetition_detection": {"max_pattern_size": 3, "min_count": 1}}, "repetition_detection"),
        ({"repetition_detection": {"max_patern_size": 3}}, "repetition_detection"),
        ({"logits_processors": [{"qualname": 3}]}, "logits_processors"),
        ({"logits_processors": "a:b"}, "body.logits_processors"),
        ({"vllm_xargs": {"a": 1}}, "vllm_xargs"),
        ({"thinking_token_budget": 5}, "thinking_token_budget"),
        ({"prompt_embeds": "x"}, "prompt_embeds"),
        ({"structured_outputs": {"regexp": "a"}}, "structured_outputs.regexp"),
        ({"response_format": {"type": "json"}}, "response_format"),
        ({"bad_words": [""]}, "bad_words"),
        ({"stream_interval": 0}, "stream_interval"),
        ({"messages": []}, "messages"),
    ],
)
def test_refusals(call, client, fields, param):
    reply = call(PATH, {"prompt": "x", **fields})
    assert reply.status == 400
    assert reply.error["type"] == "BadRequestError" and reply.error["param"] == param
    assert param.removeprefix("body.").split(".")[-1] in reply.error["message"]
    assert all(stream.num_aborts for stream in client.streams)


def test_unknown_field_names_its_neighbour(call):
    error = call(PATH, {"prompt": "x", "temprature": 1}).error
    assert error["message"] == "Unknown request field 'temprature'. Did you mean 'temperature'?"
    assert error["param"] == "temprature"


@pytest.mark.parametrize(
    ("error", "status", "param"),
    [
        (InvalidRequestError("token 9 is outside the vocabulary", param="prompt"), 400, "prompt"),
        (QueueFullError("full", retry_after_s=0.2, reason="max_num_queued_reqs"), 429, None),
    ],
)
def test_several_prompts_are_accepted_together_or_not_at_all(call, client, error, status, param):
    client.submit_errors = {2: error}
    reply = call(PATH, {"prompt": ["a", "b", "c"], "stream": True})
    assert reply.status == status and reply.error["param"] == param
    assert client.streams == []


def test_without_a_tokenizer(call, client):
    client.tokenizer = None
    assert call(PATH, {"prompt": "x"}).error["param"] == "prompt"
    assert call(PATH, {"prompt": [1], "echo": True}).error["param"] == "echo"
    assert call(PATH, {"prompt": [1]}).status == 200
    assert client.submissions[-1]["params"].detokenize is False


class TestHopelessPrompts:
    """Refused before anything is encoded or scanned: either takes seconds."""

    @pytest.mark.parametrize("prompt", ["x" * 101, ["x", "x" * 101], [None] * 101, [[None] * 101], ["x", [None] * 101]])
    def test_refused_at_once(self, call, client, prompt, monkeypatch):
        monkeypatch.setattr(client.tokenizer, "encode", None)
        reply = call("/v1/completions", {"prompt": prompt})
        assert reply.status == 400 and reply.error["param"] == "prompt"
        assert "maximum context length is 100 tokens" in reply.error["message"]

    @pytest.mark.parametrize("prompt", ["x" * 200, [7] * 200])
    def test_truncation_gives_hope(self, call, prompt):
        assert call("/v1/completions", {"prompt": prompt, "truncate_prompt_tokens": 5}).status == 200

    def test_no_bound_no_haste(self, call, client):
        client.tokenizer.longest_token_characters = None
        reply = call("/v1/completions", {"prompt": "x" * 200})
        assert "201 input tokens" in reply.error["message"]

    def test_messages(self, call, client, monkeypatch):
        monkeypatch.setattr(client.tokenizer, "encode", None)
        for messages in ([{"role": "user", "content": "x" * 101}], [{"role": "user", "content": ""}] * 101):
            reply = call("/v1/chat/completions", {"messages": messages})
            assert reply.status == 400 and reply.error["param"] == "messages"
            assert "maximum context length is 100 tokens" in reply.error["message"]
