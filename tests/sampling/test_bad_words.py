"""Bad words: the index against the definition, their bounds, and what they leave beside a grammar."""

from __future__ import annotations

import ctypes
import pickle
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paged_backend.errors import InvalidRequestError
from paged_backend.sampling.processors import logit_changes
from paged_backend.sampling.sampler import build_batch
from paged_backend.sampling_params import (
    MAX_BAD_WORD_TOKENS,
    MAX_BAD_WORDS,
    BadWords,
    SamplingParams,
    StructuredOutputsParams,
)
from paged_backend.scheduler.plan import SamplingTask
from paged_backend.structured.matcher import Matcher
from paged_backend.structured.token_masks import TokenMasks

VOCAB_SIZE = 40
EOS = 1

token_ids = st.integers(0, 3)
"""Few, so that outputs run into words all the time."""


def forbidden(words: Collection[Sequence[int]], output: Sequence[int]) -> set[int]:
    """The definition: the last token of each word that the output ends with but for that token."""
    ends = {word[-1] for word in words if len(word) == 1}
    return ends | {word[-1] for word in words if len(word) > 1 and list(output[1 - len(word) :]) == list(word[:-1])}


@given(st.lists(st.lists(token_ids, min_size=1, max_size=6), max_size=30), st.lists(token_ids, max_size=12))
def test_the_index_finds_what_the_definition_says(words: list[list[int]], output: list[int]) -> None:
    index = BadWords(words)
    for end in range(len(output) + 1):
        found = index.last_tokens(output[:end])
        assert set(found) == forbidden(words, output[:end])
    assert index == tuple(map(tuple, words)), "it is what was given"


def test_all_samples_share_one_index() -> None:
    params = SamplingParams(bad_words_token_ids=[[3], [4, 5], [4, 5]])
    assert isinstance(params.bad_words_token_ids, BadWords)
    assert replace(params, n=3).bad_words_token_ids is params.bad_words_token_ids
    copy = pickle.loads(pickle.dumps(params))
    assert copy == params and copy.bad_words_token_ids.last_tokens([4]) == (3, 5)
    assert SamplingParams(bad_words_token_ids=None).bad_words_token_ids == ()


def test_the_prompt_counts_for_nothing() -> None:
    params = SamplingParams(bad_words_token_ids=[[4, 5], [6, 7]])
    assert logit_changes(SamplingTask(params, (0,), (6,), (6,))).suppressed_token_ids == ()
    assert logit_changes(SamplingTask(params, (0,), (6,), (6, 4), (EOS,))).suppressed_token_ids == (EOS, 5)


def test_bounds() -> None:
    largest = [[1, 2, 3 + number] for number in range(MAX_BAD_WORDS - 1)] + [[7] * MAX_BAD_WORD_TOKENS]
    SamplingParams(bad_words_token_ids=largest)
    for words, said in (([*largest, [1]], "at most 1024"), ([[7] * (MAX_BAD_WORD_TOKENS + 1)], "got one of 65")):
        with pytest.raises(InvalidRequestError, match=said) as caught:
            SamplingParams(bad_words_token_ids=words)
        assert caught.value.param == "bad_words_token_ids"


class FixedMatcher:
    """A place in a grammar at which these tokens may come next."""

    error = ""

    def __init__(self, *allowed: int) -> None:
        self._bits = sum(1 << token for token in allowed)

    def follow(self, token_ids: Sequence[int], num_before: int) -> None:
        pass

    def write_mask(self, address: int, num_bytes: int) -> bool:
        ctypes.memmove(address, self._bits.to_bytes(num_bytes, "little"), num_bytes)
        return True


@pytest.mark.parametrize(
    ("allowed", "suppressed", "words", "left"),
    [
        ((5, 6, EOS), (EOS,), [[5]], {6}),
        ((6, EOS), (EOS,), [], {6}),
        ((EOS,), (EOS,), [], {EOS}),
        # A word takes the last token beside the end: the end is all that is left.
        ((5, EOS), (EOS,), [[5]], {EOS}),
        # A word that is an end stays forbidden where the grammar leaves ends alone.
        ((EOS, 9), (EOS, 9), [[9]], {EOS}),
        ((9,), (EOS, 9), [[9]], set()),
        ((5,), (), [[5]], set()),
    ],
)
def test_what_is_left_beside_a_grammar(
    allowed: tuple[int, ...], suppressed: tuple[int, ...], words: list[list[int]], left: set[int]
) -> None:
    params: dict[str, Any] = {"bad_words_token_ids": words, "structured_outputs": StructuredOutputsParams(regex="x")}
    task = SamplingTask(SamplingParams(**params), (0,), (2,), (2,), suppressed)
    task.matcher = cast("Matcher", FixedMatcher(*allowed))
    batch = build_batch([task], TokenMasks(VOCAB_SIZE, 1))
    assert batch.token_masks is not None
    mask = int.from_bytes(batch.token_masks[batch.changes[0].token_mask].numpy().tobytes(), "little")
    may_come = {token for token in range(VOCAB_SIZE) if mask >> token & 1}
    assert may_come == set(allowed)
    assert may_come - set(batch.changes[0].suppressed_token_ids) == left
