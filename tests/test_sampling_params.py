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
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("logprobs", -1),
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
    assert raised.value.param == name


def test_contradictions_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="min_tokens"):
        SamplingParams(min_tokens=5, max_tokens=4)
    with pytest.raises(InvalidRequestError, match="detokenize"):
        SamplingParams(stop="x", detokenize=False)


def test_they_are_copied_and_travel() -> None:
    stops, bias = ["a"], {5: 1.0}
    params = SamplingParams(stop=stops, logit_bias=bias, n=2, seed=3)
    stops.append("b")
    bias[6] = 1.0
    assert (params.stop, dict(params.logit_bias)) == (("a",), {5: 1.0})
    assert pickle.loads(pickle.dumps(params)) == copy.deepcopy(params) == params
    assert SamplingParams(**dataclasses.asdict(params)) == params
