"""The soak itself: what it asks for, that it finds one wrong bit, and says where."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from paged_backend.executor.kv_transfer import KVTransfer
from paged_backend.kv.host_tier import Transfers
from paged_backend.outputs import CompletionOutput, Logprob, RequestOutput
from paged_backend.sampling_params import SamplingParams
from tests.soak.differences import difference
from tests.soak.provoked import Provoked, table
from tests.soak.requests import LONGEST_OUTPUT, LONGEST_PROMPT, SoakRequest, random_request
from tests.soak.soak import Expected, run_alone, run_crowded
from tests.soak.subjects import MAX_MODEL_LEN, RECIPES, Subject
from tests.soak.surroundings import Surrounding, surroundings
from tests.soak.test_soak import NUM_REQUESTS


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject.make(RECIPES["llama-float32"], tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def expected(subject: Subject) -> Expected:
    return run_alone(subject, seed=2, count=24)


NOT_ASKED = {"skip_special_tokens", "spaces_between_special_tokens", "stream_interval", "bad_words"}
"""Fields that change no token, and the one that becomes `bad_words_token_ids` before the engine sees it."""


def test_requests_are_of_every_kind(subject: Subject) -> None:
    requests = [random_request(0, number, subject.tokenizer, subject.vocab_size) for number in range(NUM_REQUESTS)]
    for field in dataclasses.fields(SamplingParams):
        default = getattr(SamplingParams(), field.name)
        values = [getattr(request.params, field.name) for request in requests]
        assert field.name in NOT_ASKED or any(value != default for value in values), field.name
    assert {request.params.logprobs for request in requests} == {None, 0, 1, 2, 3, 4, 5}
    lengths = sorted(len(request.prompt) for request in requests)
    assert lengths[0] == 1 and lengths[-1] > 300 and lengths[-1] <= LONGEST_PROMPT
    assert LONGEST_PROMPT + LONGEST_OUTPUT < MAX_MODEL_LEN
    beginnings = [request.prompt[:16] for request in requests if len(request.prompt) >= 16]
    assert len(set(beginnings)) < len(beginnings) / 2, "most share a prefix"


def test_a_request_is_its_seeds_and_numbers_alone(subject: Subject) -> None:
    def request(seed: int, number: int) -> SoakRequest:
        return random_request(seed, number, subject.tokenizer, subject.vocab_size)

    assert request(3, 7) == request(3, 7)
    assert len({request(seed, number).params.seed for seed in (3, 4) for number in (7, 8)}) == 4


def test_alone_they_end_in_every_way(expected: Expected) -> None:
    samples = [sample for output in expected.outputs for sample in output.outputs]
    assert {sample.finish_reason for sample in samples} == {"stop", "length", "repetition"}
    assert {type(sample.stop_reason) for sample in samples} >= {str, type(None)}


def test_every_combination_has_a_model() -> None:
    found = [surrounding for place in range(len(RECIPES)) for surrounding in surroundings(place)]
    assert {(s.preemption, s.budget, s.num_threads) for s in found if s.preemption} == {
        (preemption, budget, num_threads)
        for preemption in ("recompute", "swap")
        for budget in (16, 64, 256, 2048)
        for num_threads in (1, 2)
    }
    assert {(s.preemption, s.tier) for s in found} == {
        *(("recompute", tier) for tier in ("none", "host", "disk")),
        *(("swap", tier) for tier in ("host", "disk")),
        *((None, tier) for tier in ("none", "disk")),
    }


def test_one_wrong_bit_is_found(expected: Expected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all the blocks that come back from host memory, one has one other bit."""
    real, wrong = KVTransfer.swap, []

    def swap(self: KVTransfer, transfers: Transfers, pairs: Sequence[torch.Tensor]) -> Any:
        marks = real(self, transfers, pairs)
        if transfers.swap_ins and not wrong:
            _, block = transfers.swap_ins[0]
            wrong.append(block)
            self._blocks[0, 0, block, 2] ^= 16  # in the mantissa of a key
        return marks

    monkeypatch.setattr(KVTransfer, "swap", swap)
    surrounding = Surrounding("swap", 64, 1, "host")
    _, found = run_crowded(expected, surrounding, tmp_path)
    assert wrong and found
    assert all(text.startswith((f"{surrounding}, cold, request ", f"{surrounding}, warm, request ")) for text in found)


OUTPUT = RequestOutput(
    "3",
    None,
    [5, 6],
    [
        CompletionOutput(0, "ab", [7, 8], -1.5, [{7: Logprob(-1.0, 1)}, {8: Logprob(-0.5, 1), 9: Logprob(-0.9, 2)}]),
        CompletionOutput(1, "c", [7], 0.0, [{7: Logprob(0.0, 1)}], "stop", "c"),
    ],
)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda output: output.outputs[0].token_ids.__setitem__(1, 9), "sample 0, position 1: (9, "),
        (lambda output: output.outputs[0].token_ids.pop(), "sample 0, position 1: (None, "),
        (lambda output: output.outputs[0].logprobs[1].update({9: Logprob(-0.9000000000000001, 2)}), "position 1: (8, "),
        (lambda output: output.outputs[1].logprobs[0].update({7: Logprob(-0.0, 1)}), "sample 1, position 0: (7, "),
        (lambda output: setattr(output.outputs[1], "cumulative_logprob", -0.0), "sample 1, cumulative_logprob: -0.0"),
        (lambda output: setattr(output.outputs[1], "stop_reason", None), "sample 1, stop_reason: None; alone: 'c'"),
    ],
)
def test_a_difference_is_named(change: Any, where: str) -> None:
    request = SoakRequest(3, (5, 6), SamplingParams(seed=11))
    here = deepcopy(OUTPUT)
    assert difference(request, OUTPUT, here) is None
    change(here)
    text = difference(request, OUTPUT, here)
    assert text is not None and where in text
    assert text.startswith("request 3 (seed 11, prompt of 2 tokens), sample ") and repr(request.params) in text


def test_a_soak_that_provokes_nothing_proves_nothing() -> None:
    assert Provoked().missing(Surrounding("swap", 16, 1, "disk").must_provoke) == [
        "aborts",
        "copies",
        "hits",
        "chunks",
        "swapped",
        "offload_hits",
        "disk_bytes",
    ]
    assert Provoked(hits=1, recomputed=2).missing(Surrounding("recompute", 2048, 1, "none").must_provoke) == [
        "aborts",
        "copies",
    ]


def test_the_summary_adds_up() -> None:
    lines = table({"one": Provoked(requests=2), "two": Provoked(requests=1_000, tokens=5)})
    assert lines[0].split()[:2] == ["requests", "tokens"]
    assert [line.split()[:3] for line in lines[1:]] == [["one", "2", "0"], ["two", "1,000", "5"], ["all", "1,002", "5"]]
