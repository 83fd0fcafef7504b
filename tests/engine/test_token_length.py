"""The bound on a token's characters: never too small, and none where there is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from paged_backend.engine import tokenizer as engine_tokenizer
from paged_backend.engine.token_length import longest_token_characters
from paged_backend.models.folder import resolve_folder

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level(normalizer=None, *, words=("ab", "abab")):
    vocab = {token: index for index, token in enumerate([*ALPHABET, *words])}
    tokenizer = Tokenizer(models.BPE(vocab, [("a", "b"), ("ab", "ab")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return tokenizer


def with_added(**options):
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<mask>", **options)])
    return tokenizer


def of_model(model, splitter):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = splitter
    return tokenizer


def metaspace(**options):
    pieces = ["<unk>", "a", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    return of_model(models.BPE(vocab, [], unk_token="<unk>", fuse_unk=True, **options), pre_tokenizers.Metaspace())


BOUNDED = {
    "byte level": (byte_level(), 4),
    "nfc": (byte_level(normalizers.NFC()), 16),
    "replace": (byte_level(normalizers.Sequence([normalizers.Replace("ccc", "c"), normalizers.Lowercase()])), 12),
    "added": (with_added(), 6),
    "byte fallback": (metaspace(byte_fallback=True), 6),
}
UNBOUNDED = {
    "strip": byte_level(normalizers.Strip()),
    "replace with nothing": byte_level(normalizers.Replace("c", "")),
    "added token eats space": with_added(lstrip=True),
    "space is dropped": of_model(models.BPE({"a": 0, "?": 1}, [], unk_token="?"), pre_tokenizers.Whitespace()),
    "unknown runs": metaspace(),
    "words": of_model(models.WordLevel({"a": 0, "?": 1}, unk_token="?"), pre_tokenizers.Digits()),
    "unknown characters are dropped": of_model(models.BPE({"a": 0}, []), pre_tokenizers.Digits()),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_bounds(name):
    tokenizer, longest = BOUNDED[name]
    assert longest_token_characters(tokenizer) == longest


@pytest.mark.parametrize("name", UNBOUNDED)
def test_no_bound(name):
    assert longest_token_characters(UNBOUNDED[name]) is None


@pytest.mark.parametrize("name", BOUNDED)
@given(text=st.text() | st.text("abc \u0301\u0313\u0345\u03b1<mask>"))
def test_no_text_has_fewer_tokens(name, text):
    tokenizer, longest = BOUNDED[name]
    assert len(tokenizer.encode(text, add_special_tokens=False).ids) * longest >= len(text)


def test_the_bundled_tokenizer():
    tokenizer = engine_tokenizer.Tokenizer.load(resolve_folder("paged-tiny", None))
    assert tokenizer.longest_token_characters == 14
