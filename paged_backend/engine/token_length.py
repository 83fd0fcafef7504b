"""How many characters of a text one token can stand for: what tells a hopeless prompt without encoding it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

_COMPOSED_CHARACTERS = 4
"""Most characters that Unicode's composition (NFC, NFKC) makes one character of."""

_SHRINKS_BY = {
    "ByteLevel": 1,
    "Lowercase": 1,
    "NFC": _COMPOSED_CHARACTERS,
    "NFD": 1,
    "NFKC": _COMPOSED_CHARACTERS,
    "NFKD": 1,
    "Prepend": 1,
}
"""Normalisers that drop nothing, each with how many characters it may make one of."""

_LOSSLESS_SPLITTERS = frozenset({"ByteLevel", "Digits", "FixedLength", "Metaspace", "UnicodeScripts"})
_NUM_BYTES = 256


def longest_token_characters(backend: Any) -> int | None:
    """Most characters of a text that one of its tokens stands for, or None where there is no bound.

    There is none where the tokenizer drops characters, or makes one token of any number of them: normalisers that
    strip, splitters that leave out white space, words and runs that become one unknown token.

    Args:
        backend: a `tokenizers.Tokenizer`.
    """
    added = backend.get_added_tokens_decoder().values()
    if any(token.lstrip or token.rstrip for token in added):
        return None  # such a token takes the white space around it
    factor = 1
    for part in _parts(backend.normalizer, "normalizers"):
        shrinks_by = _shrinks_by(part)
        if shrinks_by is None:
            return None
        factor *= shrinks_by
    splitters = list(_parts(backend.pre_tokenizer, "pretokenizers"))
    if not all(_keeps_everything(part) for part in splitters) or not _reads_everything(backend, splitters):
        return None
    # A token's spelling is never shorter than what it stands for: byte-level ones have a character per byte.
    longest = max(len(token) for token in backend.get_vocab(with_added_tokens=True))
    return longest * factor


def _parts(component: Any, key: str) -> Iterator[dict[str, Any]]:
    """The description of a component, or of each of a sequence's."""
    if component is not None:
        yield from _flatten(json.loads(component.__getstate__()), key)


def _flatten(part: dict[str, Any], key: str) -> Iterator[dict[str, Any]]:
    if part["type"] != "Sequence":
        yield part
        return
    for inner in part[key]:
        yield from _flatten(inner, key)


def _shrinks_by(part: dict[str, Any]) -> int | None:
    if part["type"] != "Replace":
        return _SHRINKS_BY.get(part["type"])
    pattern, content = part["pattern"].get("String"), part["content"]
    return -(-len(pattern) // len(content)) if pattern and content else None


def _keeps_everything(part: dict[str, Any]) -> bool:
    if part["type"] in ("Split", "Punctuation"):
        return bool(part["behavior"] != "Removed")
    return part["type"] in _LOSSLESS_SPLITTERS


def _reads_everything(backend: Any, splitters: list[dict[str, Any]]) -> bool:
    """Whether every character, known or not, becomes at least a token of its own."""
    model = backend.model
    if type(model).__name__ != "BPE":
        return False  # the others make one unknown token of a word or a run
    vocab = backend.get_vocab(with_added_tokens=False)
    if model.byte_fallback and all(f"<0x{byte:02X}>" in vocab for byte in range(_NUM_BYTES)):
        return True
    if model.unk_token is not None and not model.fuse_unk:
        return True
    from tokenizers.pre_tokenizers import ByteLevel

    is_byte_level = any(
        part["type"] == "ByteLevel" for part in [*splitters, *_parts(backend.normalizer, "normalizers")]
    )
    return is_byte_level and all(byte in vocab for byte in ByteLevel.alphabet())
