"""What the answer says and how: stops, log-probabilities, echo, token ids, streams, usage, labels."""

from __future__ import annotations

from tests.conformance.case import CHAT, COMPLETIONS, PROMPT, accepted, refused, streamed, whole, wrong_types
from tests.conformance.checks import (
    echoes,
    generated,
    likeliest_taken,
    prompt_of,
    same_as,
    same_values,
    stopped_at,
    stopped_by,
    token_ids_are_the_text,
    tokens_named_by_id,
)

_STOPS = [
    *accepted("stop", "e", stopped_at("e"), max_tokens=40),
    *accepted("stop", ["e"], stopped_at("e"), same_as(stop="e"), max_tokens=40),
    *accepted("stop", ["#never#", "e", "%"], stopped_at("e"), max_tokens=40),
    *accepted("stop", ["e"], stopped_at("e", included=True), include_stop_str_in_output=True, max_tokens=40),
    *accepted("stop", "e", n=2, temperature=0.8, seed=3, max_tokens=40),
    *accepted("stop", [], same_as(stop=None)),
    *accepted("stop", None, same_as()),
    *accepted("stop", ["#never#"], same_as(stop=None)),
    *accepted("stop", ["a", "b", "c", "d"], max_tokens=40),
    *refused("stop", ["a", "b", "c", "d", "e"]),
    *refused("stop", ""),
    *refused("stop", ["a", ""]),
    *refused("stop", "\ud83d"),
    *wrong_types("stop", 5, {"a": 1}),
    *wrong_types("stop", ["a", 5], param="body.stop.1"),
    *accepted("include_stop_str_in_output", True, same_as(include_stop_str_in_output=None)),
    *wrong_types("include_stop_str_in_output", "yes"),
    *accepted("stop_token_ids", [300], stopped_by(300), generated(1, "stop"), logit_bias={"300": 100}),
    *accepted("stop_token_ids", [], same_as(stop_token_ids=None)),
    *refused("stop_token_ids", [-1]),
    *wrong_types("stop_token_ids", 300, "300"),
    *wrong_types("stop_token_ids", ["300"], param="body.stop_token_ids.0"),
    *accepted("skip_special_tokens", True, same_as(skip_special_tokens=None)),
    *accepted("skip_special_tokens", False, max_tokens=40),
    *wrong_types("skip_special_tokens", 0),
    *accepted("spaces_between_special_tokens", True, same_as(spaces_between_special_tokens=None)),
]

_ON_TEXT = (COMPLETIONS,)
_ON_CHAT = (CHAT,)
_LOGPROBS = [
    *accepted("logprobs", 0, same_values(logprobs=5), on=_ON_TEXT),
    *accepted("logprobs", 1, likeliest_taken, on=_ON_TEXT),
    *accepted("logprobs", 5, likeliest_taken, n=2, on=_ON_TEXT),
    *accepted("logprobs", 3, temperature=1.5, seed=3, n=2, on=_ON_TEXT),
    *accepted("logprobs", 20, likeliest_taken, on=_ON_TEXT),
    *accepted("logprobs", 2, likeliest_taken, prompt=["One", "Two"], on=_ON_TEXT),
    *accepted("logprobs", 2, stop="e", max_tokens=40, on=_ON_TEXT),
    *accepted("logprobs", 2, tokens_named_by_id, return_tokens_as_token_ids=True, on=_ON_TEXT),
    *refused("logprobs", 21, on=_ON_TEXT),
    *refused("logprobs", -2, on=_ON_TEXT),
    *wrong_types("logprobs", "1", True, 1.5, on=_ON_TEXT),
    *refused("top_logprobs", 2, on=_ON_TEXT),
    *accepted("logprobs", True, same_values(top_logprobs=5), on=_ON_CHAT),
    *accepted("logprobs", False, same_as(logprobs=None), on=_ON_CHAT),
    *accepted("logprobs", True, same_values(top_logprobs=1), n=2, on=_ON_CHAT),
    *accepted("top_logprobs", 0, same_as(top_logprobs=None), logprobs=True, on=_ON_CHAT),
    *accepted("top_logprobs", 1, likeliest_taken, logprobs=True, on=_ON_CHAT),
    *accepted("top_logprobs", 20, likeliest_taken, logprobs=True, on=_ON_CHAT),
    *accepted("top_logprobs", 3, logprobs=True, temperature=1.5, seed=3, n=2, on=_ON_CHAT),
    *accepted("top_logprobs", 2, tokens_named_by_id, logprobs=True, return_tokens_as_token_ids=True, on=_ON_CHAT),
    *refused("top_logprobs", 21, logprobs=True, on=_ON_CHAT),
    *refused("top_logprobs", -2, logprobs=True, on=_ON_CHAT),
    *refused("top_logprobs", 2, on=_ON_CHAT),
    *refused("top_logprobs", 2, logprobs=False, on=_ON_CHAT),
    *wrong_types("logprobs", 1, "true", on=_ON_CHAT),
    *wrong_types("top_logprobs", "2", 1.5, on=_ON_CHAT),
    *accepted("return_tokens_as_token_ids", True, same_as(return_tokens_as_token_ids=None)),
    *wrong_types("return_tokens_as_token_ids", 1),
]

_ECHO = [
    *accepted("echo", True, echoes(PROMPT), on=_ON_TEXT),
    *accepted("echo", True, echoes(PROMPT), n=2, temperature=0.9, seed=2, on=_ON_TEXT),
    *accepted("echo", False, same_as(echo=None), on=_ON_TEXT),
    *accepted("echo", True, stop="e", max_tokens=40, on=_ON_TEXT),
    *wrong_types("echo", 1, "true", on=_ON_TEXT),
    *refused("suffix", "end", on=_ON_TEXT),
    *accepted("suffix", "", same_as(suffix=None), on=_ON_TEXT),
]

_TOKEN_IDS = [
    *accepted("return_token_ids", True, token_ids_are_the_text),
    *accepted("return_token_ids", True, token_ids_are_the_text, n=2, temperature=0.9, seed=4),
    *accepted("return_token_ids", True, prompt=["One", "Once upon"], n=2, on=_ON_TEXT),
    *accepted("return_token_ids", False, same_as(return_token_ids=None)),
    *wrong_types("return_token_ids", 1, "true"),
]

_STREAMS = [
    *(
        case
        for options in (
            {"include_usage": True},
            {"include_usage": False},
            {"include_usage": True, "continuous_usage_stats": True},
            {"include_usage": None},
            {},
        )
        for others in ({}, {"n": 2}, {"n": 2, "temperature": 0.9, "seed": 3, "return_token_ids": True})
        for case in streamed(accepted("stream_options", options, **others))
    ),
    *streamed(accepted("stream_options", {"include_obfuscation": False})),
    *whole(refused("stream_options", {"include_usage": True})),
    *streamed(refused("stream_options", {"usage": True}, "stream_options.usage")),
    *streamed(refused("stream_options", {"include_usage": 1}, "body.stream_options.include_usage")),
    *streamed(refused("stream_options", True, "body.stream_options")),
    *wrong_types("stream", "yes", 1, {}),
]

_LABELS = [
    *accepted("user", "somebody", same_as(user=None)),
    *(
        case
        for field, value in (
            ("metadata", {"a": "b"}),
            ("store", False),
            ("service_tier", "auto"),
            ("safety_identifier", "x"),
            ("prompt_cache_key", "y"),
            ("parallel_tool_calls", True),
        )
        for case in accepted(field, value, same_as(**{field: None}), on=_ON_CHAT)
    ),
    *whole(accepted("request_id", "mine")),
    *streamed(accepted("request_id", "mine, streamed")),
    *refused("request_id", ""),
    *refused("request_id", "x" * 257),
    *refused("request_id", "a\nb"),
    *wrong_types("request_id", 5),
    *accepted("priority", 0, same_as(priority=None)),
    *refused("priority", 1),  # this server's policy is first come, first served
    *refused("priority", 2**63),
    *wrong_types("priority", "0", 0.5),
    *accepted("cache_salt", "salt", same_as(cache_salt=None)),
    *refused("cache_salt", ""),
    *refused("cache_salt", "x" * 1025),
    *wrong_types("cache_salt", 5),
    *accepted("timeout_s", 600, same_as(timeout_s=None)),
    *refused("timeout_s", 0),
    *refused("timeout_s", -1),
    *wrong_types("timeout_s", "1"),
    *accepted("model", None),
]

_PROMPT_LENGTHS = [
    *accepted("truncate_prompt_tokens", 2, prompt_of(2), on=_ON_TEXT),
    *accepted("truncate_prompt_tokens", 5, prompt_of(5), on=_ON_CHAT),
    *accepted("truncate_prompt_tokens", 100, same_as(truncate_prompt_tokens=None)),
    *accepted("truncate_prompt_tokens", -1, same_as(truncate_prompt_tokens=None)),
    *accepted("truncation_side", "right", prompt_of(2), truncate_prompt_tokens=2),
    *accepted("truncation_side", "left", same_as(truncation_side=None), truncate_prompt_tokens=2),
    *refused("truncate_prompt_tokens", 0),
    *refused("truncate_prompt_tokens", -2),
    *refused("truncate_prompt_tokens", 10**6),
    *refused("truncation_side", "middle"),
    *wrong_types("truncate_prompt_tokens", "2", 1.5),
    *wrong_types("truncation_side", 1),
    *accepted("add_special_tokens", True),
    *accepted("add_special_tokens", False),
    *wrong_types("add_special_tokens", 1),
]

ROWS = [*_STOPS, *_LOGPROBS, *_ECHO, *_TOKEN_IDS, *_STREAMS, *_LABELS, *_PROMPT_LENGTHS]
