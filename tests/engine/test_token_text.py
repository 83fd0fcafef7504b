"""A token's own text is what it adds in any place, or None."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerFast

from paged_backend.engine.detokenizer import SampleText
from paged_backend.engine.token_text import TokenTexts
from paged_backend.engine.tokenizer import Tokenizer
from paged_backend.sampling_params import SamplingParams

SPACE = "\u2581"
LLAMA = decoders.Sequence(
    [
        decoders.Replace(SPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(content=" ", left=1, right=0),
    ]
)
GEMMA = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
KNOWN = {"llama": LLAMA, "gemma": GEMMA, "metaspace": decoders.Metaspace(), "byte level": decoders.ByteLevel()}
UNKNOWN: dict[str, Any] = {
    "word pieces": decoders.WordPiece(),
    "suffixes": decoders.BPEDecoder(),
    "stripped on the right": decoders.Sequence([decoders.Fuse(), decoders.Strip(content=" ", left=0, right=1)]),
    "stripped one by one": decoders.Sequence([decoders.Strip(content=" ", left=1, right=0), decoders.Fuse()]),
    "replaced across tokens": decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "c")]),
    "none": None,
}


def new_tokenizer(decoder: Any) -> Tokenizer:
    """256 bytes, some words with and without a space before them, and a special token."""
    words = [SPACE, f"{SPACE}hello", "a", "b", f"{SPACE}{SPACE}", "\u00e9", "##x", f"b{SPACE}"]
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocabulary |= {word: 256 + i for i, word in enumerate(words)}
    backend = BackendTokenizer(models.BPE(vocab=vocabulary, merges=[]))
    if decoder is not None:
        backend.decoder = decoder
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>"))


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("name", KNOWN)
def test_own_texts_add_up(name: str, skip: bool) -> None:
    """Against decoding all at once, over random tokens without bytes."""
    tokenizer = new_tokenizer(KNOWN[name])
    texts = tokenizer.token_texts(skip)
    plain = [token_id for token_id in range(256, tokenizer.vocab_size) if texts[token_id] is not None]
    assert len(plain) >= 8
    rng = random.Random(0)
    for _ in range(300):
        token_ids = [257, *rng.choices(plain, k=rng.randrange(12))]
        first = tokenizer.decode(token_ids[:1], skip)
        assert first + "".join(texts[i] or "" for i in token_ids[1:]) == tokenizer.decode(token_ids, skip)


@pytest.mark.parametrize("name", KNOWN)
def test_streams_are_the_same_with_and_without_own_texts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes, special tokens and words mixed, after prompts of all kinds."""
    tokenizer = new_tokenizer(KNOWN[name])
    rng = random.Random(1)
    for _ in range(200):
        ids = [rng.choice([rng.randrange(256), *range(256, tokenizer.vocab_size)]) for _ in range(20)]
        num_prompt = rng.randrange(4)
        params = SamplingParams(max_tokens=None, skip_special_tokens=rng.random() < 0.5)
        outputs = []
        for use in (True, False):
            with monkeypatch.context() as patch:
                if not use:
                    patch.setattr(TokenTexts, "__missing__", lambda self, token_id: None)
                    tokenizer._texts = {skip: TokenTexts(tokenizer._backend, skip) for skip in (False, True)}
                text = SampleText(tokenizer, ids[:num_prompt], params)
                outputs.append("".join([text.push(token_id)[0] for token_id in ids[num_prompt:]]) + text.finish(None))
            tokenizer._texts = {skip: TokenTexts(tokenizer._backend, skip) for skip in (False, True)}
        assert outputs[0] == outputs[1], (ids, num_prompt)


@pytest.mark.parametrize("name", UNKNOWN)
def test_other_decoders_have_no_own_texts(name: str) -> None:
    texts = new_tokenizer(UNKNOWN[name]).token_texts()
    assert all(texts[token_id] is None for token_id in range(256, 264))


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_bytes_that_are_put_together_have_no_own_texts(name: str) -> None:
    texts = new_tokenizer(KNOWN[name]).token_texts()
    assert all(texts[token_id] is None for token_id in range(256))


def test_ids_past_the_vocabulary_add_nothing() -> None:
    assert new_tokenizer(LLAMA).token_texts()[10_000] == ""
