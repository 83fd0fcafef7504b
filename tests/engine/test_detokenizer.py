"""Text that streams out is the text that decoding everything at once gives, cut only where it is final."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from paged_backend.engine.detokenizer import IncrementalDetokenizer, SampleText
from paged_backend.engine.tokenizer import Tokenizer
from paged_backend.sampling_params import SamplingParams


@pytest.fixture(scope="module")
def byte_tokenizer() -> Tokenizer:
    """One token per byte: the hardest case, where every character outside ASCII comes in pieces."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = BackendTokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>"))


def stream(tokenizer: Tokenizer, ids: list[int], **params: object) -> tuple[list[str], str | None]:
    text = SampleText(tokenizer, [], SamplingParams(max_tokens=None, **params))  # type: ignore[arg-type]
    parts = []
    for token_id in ids:
        part, stop = text.push(token_id)
        parts.append(part)
        if stop is not None:
            return parts, stop
    return [*parts, text.finish(None)], None


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\ufffd"), max_size=40))
@settings(max_examples=200, deadline=None)
def test_whole_characters_only(byte_tokenizer: Tokenizer, text: str) -> None:
    ids = byte_tokenizer.encode(text)
    parts, _ = stream(byte_tokenizer, ids)
    assert "".join(parts) == text
    assert not any("\ufffd" in part for part in parts)


@given(st.lists(st.integers(0, 255), max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_bytes_add_up(byte_tokenizer: Tokenizer, ids: list[int]) -> None:
    parts, _ = stream(byte_tokenizer, ids)
    assert "".join(parts) == byte_tokenizer.decode(ids)


def test_long_garbage_is_given_out_in_bounded_windows(byte_tokenizer: Tokenizer) -> None:
    detokenizer = IncrementalDetokenizer.after_prompt(byte_tokenizer, [], True)
    lone = byte_tokenizer.encode("é")[1]  # a continuation byte
    parts = [detokenizer.push(lone) for _ in range(500)]
    assert len("".join(parts)) > 480
    assert "".join(parts) + detokenizer.flush() == "\ufffd" * 500


def test_prompt_context_is_not_repeated(byte_tokenizer: Tokenizer) -> None:
    text = SampleText(byte_tokenizer, byte_tokenizer.encode("a prompt é"), SamplingParams())
    assert [text.push(token)[0] for token in byte_tokenizer.encode(" né")] == [" ", "n", "", "é"]


def test_a_prompt_cut_through_a_character_keeps_the_space() -> None:
    """Tokenizers in the manner of Llama 2 drop a text's first space: only the prompt's end tells that it belongs."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    backend = BackendTokenizer(models.BPE(vocab={**vocabulary, "\u2581hello": 256, "a": 257}, merges=[]))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))
    prompt = [257, *"日本語".encode()]
    assert SampleText(tokenizer, prompt, SamplingParams()).push(256) == (" hello", None)


@pytest.mark.parametrize(
    ("stop", "include", "expected"),
    [
        (["STOP"], False, "say S ST STO "),
        (["STOP"], True, "say S ST STO STOP"),
        (["TOP", "STO "], False, "say S ST "),
        (["zzz"], False, "say S ST STO STOP more"),
    ],
)
def test_stop_strings(byte_tokenizer: Tokenizer, stop: list[str], include: bool, expected: str) -> None:
    ids = byte_tokenizer.encode("say S ST STO STOP more")
    parts, found = stream(byte_tokenizer, ids, stop=stop, include_stop_str_in_output=include)
    assert "".join(parts) == expected
    assert (found is None) == (stop == ["zzz"])


@given(
    st.text(alphabet="abS", max_size=30),
    st.lists(st.text(alphabet="abS", min_size=1, max_size=4), max_size=3),
)
@settings(max_examples=300, deadline=None)
def test_no_part_of_a_stop_string_leaves(byte_tokenizer: Tokenizer, text: str, stops: list[str]) -> None:
    parts, found = stream(byte_tokenizer, byte_tokenizer.encode(text), stop=stops)
    joined = "".join(parts)
    first = min((end for s in stops if (end := text.find(s) + len(s)) >= len(s)), default=None)
    if first is None:
        assert (joined, found) == (text, None)
    else:  # the first stop string to be complete wins
        assert found is not None
        assert text.startswith(joined + found)
        assert len(joined + found) == first


def test_stop_strings_wait_for_min_tokens(byte_tokenizer: Tokenizer) -> None:
    parts, found = stream(byte_tokenizer, byte_tokenizer.encode("a.b.c."), stop=["."], min_tokens=3)
    assert ("".join(parts), found) == ("a.b", ".")


def test_special_tokens_are_skipped_or_shown(byte_tokenizer: Tokenizer) -> None:
    ids = [*byte_tokenizer.encode("a"), 256, *byte_tokenizer.encode("b")]
    assert "".join(stream(byte_tokenizer, ids)[0]) == "ab"
    assert "".join(stream(byte_tokenizer, ids, skip_special_tokens=False)[0]) == "a<eos>b"
