"""Sampling parameters are checked where they are made, and travel."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest

from paged_backend import InvalidRequestError, SamplingParams


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 0),
        ("n", True),
        ("temperature", -1),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("min_p", 1.5),
        ("repetition_penalty", 0),
        ("presence_penalty", 3),
        ("frequency_penalty", -3),
        ("seed", 2**63),
        ("max_tokens", -1),
        ("min_tokens", -1),
        ("logprobs", -2),
        ("prompt_logprobs", -2),
        ("prompt_logprobs", True),
        ("logprob_token_ids", [-1]),
        ("logprob_token_ids", list(range(129))),
        ("bad_words", "word"),
        ("bad_words", ["a", " "]),
        ("bad_words", [3]),
        ("bad_words_token_ids", [[]]),
        ("bad_words_token_ids", [[-1]]),
        ("bad_words_token_ids", [1]),
        ("logits_processors", "module:name"),
        ("logits_processors", [3]),
        ("logits_processors", [{"name": "module:name"}]),
        ("logits_processors", [{"qualname": "module:name", "args": "abc"}]),
        ("repetition_detection", 3),
        ("repetition_detection", {"max_size": 3}),
        ("repetition_detection", {"max_pattern_size": 3}),
        ("repetition_detection", {"max_pattern_size": 3, "min_pattern_size": 4, "min_count": 2}),
        ("repetition_detection", {"max_pattern_size": 3, "min_count": 2.0}),
        ("skip_reading_prefix_cache", 1),
        ("spaces_between_special_tokens", None),
        ("stream_interval", 0),
        ("stop", list("abcde")),
        ("stop", [""]),
        ("stop", 5),
        ("stop_token_ids", 5),
        ("stop_token_ids", [-1]),
        ("allowed_token_ids", []),
        ("allowed_token_ids", 5),
        ("logit_bias", [1]),
        ("logit_bias", {1: 101}),
        ("logit_bias", {"a": 1}),
        ("ignore_eos", None),
        ("detokenize", 1),
        ("skip_special_tokens", None),
    ],
)
def test_wrong_values_name_their_field(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=name) as raised:
        SamplingParams(**{name: value})
    assert (raised.value.param or "").partition(".")[0] == name


def test_contradictions_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="min_tokens"):
        SamplingParams(min_tokens=5, max_tokens=4)
    with pytest.raises(InvalidRequestError, match="detokenize"):
        SamplingParams(stop="x", detokenize=False)


def test_they_are_copied_and_travel() -> None:
    stops, bias = ["a"], {5: 1.0}
    circles = {"max_pattern_size": 4, "min_count": 3}
    params = SamplingParams(
        stop=stops,
        logit_bias=bias,
        n=2,
        seed=3,
        repetition_detection=circles,
        bad_words=["b"],
        bad_words_token_ids=[[3]],
    )
    stops.append("b")
    bias[6] = 1.0
    assert (params.stop, dict(params.logit_bias)) == (("a",), {5: 1.0})
    assert pickle.loads(pickle.dumps(params)) == copy.deepcopy(params) == params
    assert SamplingParams(**dataclasses.asdict(params)) == params
