"""Where a grammar's limits end a sample is a matter of the sample alone."""

from __future__ import annotations

import random
import threading
from typing import Any

import numpy as np
import pytest
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, grammar_from

from paged_backend.structured import proving
from paged_backend.structured.matcher import Matcher
from paged_backend.structured.token_masks import TokenMasks
from paged_backend.structured.vocabulary import LIMITS, Vocabulary
from tests.structured.conftest import EOS, VOCAB_SIZE

COUNTS = r"(.*a.{40}|.*b.{30}|.*c.{20})x"  # its automaton has more states than anyone has room for
LETTERS = r"(\w*[a-m]\w{12}|\W*\p{L}{30})*"  # a step of it is much work, if nobody has done it before
LENGTH = 60


class Sample:
    """Goes through a grammar at random: what may come at each place, up to where it can go no further."""

    def __init__(self, matcher: Matcher, seed: int) -> None:
        self.matcher = matcher
        self.masks: list[bytes] = []
        self.token_ids: list[int] = []
        self.draw = random.Random(seed)
        self.is_over = False

    def take(self, mask: np.ndarray[Any, Any]) -> None:
        self.masks.append(mask.tobytes())
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
        allowed = [token for token in np.flatnonzero(bits).tolist() if token != EOS]
        self.is_over = not allowed or len(self.token_ids) == LENGTH
        self.token_ids.append(self.draw.choice(allowed or [EOS]))


def go(*samples: Sample) -> None:
    """All of them together, to their ends."""
    masks = TokenMasks(VOCAB_SIZE, len(samples))
    while live := [sample for sample in samples if not sample.is_over]:
        for row, sample in enumerate(live):
            masks.fill(row, sample.matcher, sample.token_ids, 0)
            sample.take(masks.words[row].copy())


def outcome(sample: Sample) -> tuple[list[bytes], list[int], str]:
    return sample.masks, sample.token_ids, sample.matcher.error


def test_many_samples_of_a_large_grammar(vocabulary: Vocabulary) -> None:
    grammar = grammar_from("regex", "a+")
    assert not vocabulary.matcher(grammar, 1, time_limit_s=-1.0).error
    with pytest.raises(TimeoutError):
        vocabulary.matcher(grammar, 2, time_limit_s=-1.0)


def test_a_fault_while_a_grammar_is_followed_is_no_consent(monkeypatch: pytest.MonkeyPatch) -> None:
    def follow(matcher: LLMatcher, mask_time_limit_s: float) -> dict[str, str]:
        raise MemoryError

    monkeypatch.setattr(proving, "_follow", follow)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    request = {"form": "regex", "text": "a", "limits": dict(LIMITS), "mask_time_limit_s": 1.0}
    with pytest.raises(RuntimeError):
        proving.prove(request, LLTokenizer("byte"))


@pytest.mark.parametrize(
    ("pattern", "limits", "reason"),
    [
        (COUNTS, {"max_lexer_states": 600}, "too many states"),
        (LETTERS, {"step_lexer_fuel": 5000}, "too many expressions"),
    ],
)
def test_company_changes_nothing(pattern: str, limits: dict[str, int], reason: str, tokenizer: Any) -> None:
    """As the first of all, as one of many, after many, and as the third sample of a request: the same."""
    vocabulary = Vocabulary(tokenizer.backend_tokenizer.to_str(), VOCAB_SIZE, [EOS])
    vocabulary._limits = LLParserLimits(**{**LIMITS, **limits})  # type: ignore[arg-type]
    grammar = LLMatcher.grammar_from_regex(pattern)
    alone = Sample(vocabulary.matcher(grammar, 1), seed=0)
    go(alone)
    assert reason in alone.matcher.error and 1 < len(alone.token_ids) < LENGTH  # or this is no test
    crowd = [Sample(vocabulary.matcher(grammar, 1), seed) for seed in range(8)]
    go(*crowd)
    assert outcome(crowd[0]) == outcome(alone)
    assert len({len(sample.token_ids) for sample in crowd}) > 1  # each ends where it does
    first = vocabulary.matcher(grammar, 3)
    siblings = [Sample(matcher, seed) for seed, matcher in ((5, first), (6, first.fork()), (0, first.fork()))]
    go(*siblings)
    assert outcome(siblings[2]) == outcome(alone)
