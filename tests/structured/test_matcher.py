"""Matchers against grammars that are simple enough to be known by heart: lists of texts."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paged_backend.structured import matcher as matcher_module
from paged_backend.structured.token_masks import TokenMasks
from tests.structured.conftest import EOS, VOCAB_SIZE, Compile

CHOICES = ("the", "then", "quick fox", "quiet", "dog\n", 'say "no"', "naïve", "東京", "a")


def allowed_tokens(masks: TokenMasks, row: int) -> set[int]:
    """The tokens whose bit is 1."""
    words = masks.words[row].view(np.uint32)
    return {token for token in range(VOCAB_SIZE) if words[token // 32] >> np.uint32(token % 32) & np.uint32(1)}


def token_bytes(tokenizer: Any) -> dict[int, bytes]:
    """What each token but the special ones stands for."""
    # GPT-2's way to write bytes: printable ones as themselves, the others as the characters from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    byte_of = {chr(byte): byte for byte in printable}
    byte_of |= {chr(256 + i): byte for i, byte in enumerate(sorted(set(range(256)) - set(printable)))}
    return {
        token: bytes(byte_of[character] for character in text)
        for text, token in tokenizer.get_vocab().items()
        if token > EOS
    }


@pytest.fixture(scope="module")
def spelled(tokenizer: Any) -> dict[int, bytes]:
    return token_bytes(tokenizer)


def check_next(allowed: set[int], choices: tuple[str, ...], said: bytes, spelled: dict[int, bytes]) -> None:
    """By brute force: what is allowed leads on to a choice, and every choice that is left can be reached.

    Not every token that leads there is allowed: where the text is certain, its usual tokens are.
    """
    left = [text for choice in choices if (text := choice.encode()).startswith(said)]
    assert (EOS in allowed) == (said in left)
    nexts = [said + spelled[token] for token in allowed - {EOS}]
    assert all(any(text.startswith(after) for text in left) for after in nexts)
    assert all(any(text.startswith(after) for after in nexts) for text in left if text != said)


@settings(max_examples=60, deadline=None)
@given(choices=st.lists(st.sampled_from(CHOICES), min_size=1, max_size=4, unique=True), seed=st.integers(0, 99))
def test_choices(choices: list[str], seed: int, compile_grammar: Compile, spelled: dict[int, bytes]) -> None:
    draw, masks = random.Random(seed), TokenMasks(VOCAB_SIZE, 3)
    matcher = compile_grammar(choice=choices)
    tokens: list[int] = [7, 8]  # a prompt, which does not count
    said = b""
    while True:
        masks.fill(1, matcher, tokens, 2)
        allowed = allowed_tokens(masks, 1)
        check_next(allowed, tuple(choices), said, spelled)
        assert not masks.words[0].any() and not masks.words[2].any()
        token = draw.choice(sorted(allowed))
        if token == EOS:
            assert said.decode() in choices and matcher.is_complete
            return
        tokens.append(token)
        said += spelled[token]


def test_a_fork_goes_its_own_way(compile_grammar: Compile, tokenizer: Any, spelled: dict[int, bytes]) -> None:
    def ids(text: str) -> list[int]:
        tokens: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        return tokens

    masks, choices = TokenMasks(VOCAB_SIZE, 2), ("the dog", "the fox")
    first = compile_grammar(choice=list(choices), num_samples=2)
    second = first.fork()
    for row, (matcher, rest) in enumerate(((first, "dog"), (second, "f"))):
        masks.fill(row, matcher, ids("the ") + ids(rest), 0)
    assert allowed_tokens(masks, 0) == {EOS}
    check_next(allowed_tokens(masks, 1), choices, b"the f", spelled)
    assert first.is_complete and not second.is_complete


def test_following_is_the_same_one_by_one_and_at_once(compile_grammar: Compile) -> None:
    """A matcher that has slept catches up, and one that is asked twice does not move."""
    masks, draw = TokenMasks(VOCAB_SIZE, 2), random.Random(1)
    schema = {"type": "array", "items": {"type": "string", "maxLength": 4}, "minItems": 2, "maxItems": 5}
    steady, tokens = compile_grammar(json=schema), [5]
    for _ in range(30):
        masks.fill(0, steady, tokens, 1)
        masks.fill(0, steady, tokens, 1)
        late = compile_grammar(json=schema)
        masks.fill(1, late, tokens, 1)
        allowed = allowed_tokens(masks, 0)
        assert allowed and allowed == allowed_tokens(masks, 1)
        tokens.append(draw.choice(sorted(allowed)))
        if tokens[-1] == EOS:
            break


def test_ids_that_the_tokenizer_lacks_are_never_allowed(compile_grammar: Compile, tokenizer: Any) -> None:
    masks = TokenMasks(VOCAB_SIZE, 1)
    masks.fill(0, compile_grammar(regex="(.|\n)*"), [], 0)
    allowed = allowed_tokens(masks, 0)
    assert EOS in allowed and max(allowed) < len(tokenizer) and 0 not in allowed
    assert len(allowed) > 200


def test_what_else_is_allowed(compile_grammar: Compile) -> None:
    masks = TokenMasks(VOCAB_SIZE, 1)
    masks.fill(0, compile_grammar(regex="x*"), [], 0)
    others = allowed_tokens(masks, 0) - {EOS}
    assert masks.allows_others(0, [EOS]) and not masks.allows_others(0, [EOS, *others])
    assert EOS in allowed_tokens(masks, 0)  # a question


def test_a_matcher_at_a_limit_allows_nothing(compile_grammar: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    masks, matcher = TokenMasks(VOCAB_SIZE, 1), compile_grammar(json_object=True)
    matcher.follow([300], 0)  # no JSON object begins so
    masks.fill(0, matcher, [300], 0)
    assert not masks.words.any() and matcher.error
    slow = compile_grammar(json_object=True)
    monkeypatch.setattr(matcher_module, "SLOW_MASK_S", -1.0)
    masks.fill(0, slow, [], 0)
    assert not masks.words.any() and slow.is_slow and "too long" in slow.error
    monkeypatch.undo()
    masks.fill(0, slow, [], 0)
    assert not masks.words.any()  # it stays so


def test_free_text_with_constrained_parts(compile_grammar: Compile, tokenizer: Any) -> None:
    schema = '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'
    tag = f'{{"structures": [{{"begin": "<f>", "schema": {schema}, "end": "</f>"}}], "triggers": ["<f"]}}'
    for text, fits in (
        ("no call at all", True),
        ('well: <f>{"a": 1}</f> and on', True),
        ('<f>{"a": 1}</f><f>{"a": 2}</f>', True),
        ('<f>{"a": "x"}</f>', False),
        ("<foo>", False),
        ('<f>{"a": 1}', False),
    ):
        matcher = compile_grammar(structural_tag=tag)
        matcher.follow(tokenizer(text, add_special_tokens=False).input_ids, 0)
        assert (matcher.is_complete and not matcher.error) == fits, text
