"""A grammar that begins after the reasoning: what may come, and when."""

from __future__ import annotations

import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer

from paged_backend.models.folder import resolve_folder
from paged_backend.sampling_params import ReasoningTokens
from paged_backend.structured.matcher import Matcher
from paged_backend.structured.token_masks import TokenMasks

EOS, BEGIN, END = 0, 1, 2  # the bundled model's first tokens, two of them lent to the reasoning


@pytest.fixture(scope="module")
def tokenizer():
    return LLTokenizer((resolve_folder("paged-tiny", None) / "tokenizer.json").read_text(), eos_token=EOS)


@pytest.fixture
def grammar(tokenizer):
    """Yes or no, for two samples."""
    return Matcher([LLMatcher(tokenizer, LLMatcher.grammar_from_regex("yes|no")) for _ in range(2)])


def allowed(matcher, tokenizer, token_ids=()):
    """What may come after these tokens, the first of which is the prompt."""
    masks = TokenMasks(tokenizer.vocab_size, 1)
    masks.fill(0, matcher, [9, *token_ids], 1)
    bits = np.unpackbits(masks.words[0].view(np.uint8), bitorder="little")[: tokenizer.vocab_size]
    return set(np.flatnonzero(bits).tolist())


def after(grammar, is_open):
    return grammar.after(ReasoningTokens(BEGIN, END, is_open), (EOS,))


def test_nothing_to_wait_for(grammar, tokenizer):
    first = allowed(grammar.fork(), tokenizer)
    assert BEGIN not in first
    assert allowed(grammar.after(None, (EOS,)), tokenizer) == first
    assert allowed(after(grammar, False), tokenizer) == first


@pytest.mark.parametrize(("is_open", "opening"), [(True, []), (True, [BEGIN]), (None, [BEGIN])])
def test_anything_but_the_end_while_it_reasons(grammar, tokenizer, is_open, opening):
    first = allowed(grammar.fork(), tokenizer)
    matcher, said = after(grammar, is_open), list(opening)
    for token_id in (5, 700, BEGIN, 3):
        assert allowed(matcher, tokenizer, said) == set(range(tokenizer.vocab_size)) - {EOS}
        assert not matcher.is_complete
        said.append(token_id)
    said.append(END)
    assert allowed(matcher, tokenizer, said) == first
    said += tokenizer.tokenize_str("yes")
    assert allowed(matcher, tokenizer, said) == {EOS} and matcher.is_complete


def test_it_may_do_without(grammar, tokenizer):
    first = allowed(grammar.fork(), tokenizer)
    matcher = after(grammar, None)
    assert allowed(matcher, tokenizer) == first | {BEGIN}
    assert allowed(matcher, tokenizer, tokenizer.tokenize_str("no")) == {EOS}
    assert matcher.is_complete


def test_forks_go_their_own_ways(grammar, tokenizer):
    said = [BEGIN, 5, END, *tokenizer.tokenize_str("no")]
    matcher = after(grammar, None)
    fork = matcher.fork()
    assert allowed(matcher, tokenizer, [*said[:3], *tokenizer.tokenize_str("yes")]) == {EOS}
    assert allowed(fork, tokenizer, said[:1]) == set(range(tokenizer.vocab_size)) - {EOS}
    assert allowed(fork, tokenizer, said) == {EOS} and fork.is_complete


def test_one_that_has_begun_has_no_forks(grammar, tokenizer):
    grammar.follow([9, *tokenizer.tokenize_str("no")], 1)
    with pytest.raises(AssertionError):
        grammar.fork()
