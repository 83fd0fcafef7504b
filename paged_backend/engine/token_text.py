"""The text that a token adds wherever it stands: what saves decoding a window of tokens for each new one."""

from __future__ import annotations

import json
import re
from typing import Any

_REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


class TokenTexts(dict[int, "str | None"]):
    """By token id, the text that it adds to any text before it; looked up once, then remembered.

    None is for a token whose text depends on its neighbours: a part of a character, a byte of those that are put
    together, or any at all of a tokenizer whose decoder is not known here to join tokens one by one. Safe to share
    between threads.

    Args:
        backend: a `tokenizers.Tokenizer`.
        skip_special_tokens: special tokens have no text.
    """

    def __init__(self, backend: Any, skip_special_tokens: bool) -> None:
        super().__init__()
        self._backend = backend
        self._skip_special_tokens = skip_special_tokens
        self._anchor = self._find_anchor() if _joins_one_by_one(backend) else None

    def __missing__(self, token_id: int) -> str | None:
        text = self[token_id] = self._added_text(token_id)
        return text

    def _added_text(self, token_id: int) -> str | None:
        token = self._backend.id_to_token(token_id)
        if self._anchor is None or (token is not None and _BYTE_TOKEN.fullmatch(token)):
            return None
        before = self._decode([self._anchor])
        after = self._decode([self._anchor, token_id])
        if not after.startswith(before) or _REPLACEMENT in after:
            return None
        return after[len(before) :]

    def _find_anchor(self) -> int | None:
        """A token to stand before others, as a text's first token may lose its space."""
        for token_id in range(self._backend.get_vocab_size(with_added_tokens=True)):
            token = self._backend.id_to_token(token_id)
            if token is not None and not _BYTE_TOKEN.fullmatch(token):
                text = self._decode([token_id])
                if text and _REPLACEMENT not in text:
                    return token_id
        return None

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self._backend.decode(token_ids, skip_special_tokens=self._skip_special_tokens)
        return text


def _joins_one_by_one(backend: Any) -> bool:
    """Whether a text is the join of its tokens' own texts, but for its first character and split characters.

    So it is for byte-level decoders, Metaspace, and SentencePiece's in the manner of Llama and Gemma: in these every
    token's spaces are put back, then bytes and tokens fused, and at most one space at the beginning stripped.
    """
    if backend.decoder is None:
        return False
    decoder = json.loads(backend.decoder.__getstate__())
    if decoder["type"] != "Sequence":
        return decoder["type"] in ("ByteLevel", "Metaspace")
    fused = False
    for part in decoder["decoders"]:
        kind = part["type"]
        if kind == "Replace" and not fused:
            right = len(part["pattern"].get("String", "")) == 1
        elif kind == "ByteFallback":
            right = not fused
        elif kind == "Strip":
            right = fused and part["start"] <= 1 and part["stop"] == 0
        else:
            right = kind == "Fuse"
        if not right:
            return False
        fused = fused or kind == "Fuse"
    return fused
