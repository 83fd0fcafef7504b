"""Rows of tokens for training: documents encoded, packed and marked where the loss counts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

import torch
from transformers import PreTrainedTokenizerFast

from model_store.recipe import corpus
from model_store.recipe.tokenizer import EOS, TURN_END, TURN_START
from model_store.recipe.writer import Split

_DOCUMENTS_PER_CHUNK: Final = 2048


def _segments(document: corpus.Document) -> list[tuple[str, bool]]:
    """The document's text in pieces, each with whether its tokens are to be predicted."""
    if document.text:
        return [(document.text + EOS, True)]
    pieces = [(f"{TURN_START}system\n{document.system}{TURN_END}\n", False)] if document.system else []
    for asked, answer in document.turns:
        pieces.append((f"{TURN_START}user\n{asked}{TURN_END}\n{TURN_START}assistant\n", False))
        pieces.append((answer + TURN_END, True))
        pieces.append(("\n", False))
    return [*pieces, (EOS, False)]


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[corpus.Document]) -> list[tuple[list[int], list[bool]]]:
    """Token ids of each document, and for each token whether it is to be predicted."""
    pieces = [_segments(document) for document in documents]
    flat = [text for segments in pieces for text, _ in segments]
    ids = iter(tokenizer(flat, add_special_tokens=False, return_attention_mask=False)["input_ids"])
    encoded = []
    for segments in pieces:
        tokens: list[int] = []
        counts: list[bool] = []
        for _, predicted in segments:
            piece = next(ids)
            tokens += piece
            counts += [predicted] * len(piece)
        encoded.append((tokens, counts))
    return encoded


def rows(
    tokenizer: PreTrainedTokenizerFast, num_tokens: int, seed: int, split: Split
) -> Iterator[tuple[list[int], list[bool]]]:
    """Endless rows of `num_tokens` + 1 tokens; each begins with a document, the last one may be cut."""
    tokens: list[int] = []
    counts: list[bool] = []
    for chunk in itertools.count():
        documents = list(itertools.islice(corpus.documents(seed + chunk, split), _DOCUMENTS_PER_CHUNK))
        for document_tokens, document_counts in encode(tokenizer, documents):
            tokens += document_tokens
            counts += document_counts
            if len(tokens) > num_tokens:
                yield tokens[: num_tokens + 1], counts[: num_tokens + 1]
                tokens, counts = [], []


def batches(
    tokenizer: PreTrainedTokenizerFast,
    num_rows: int,
    num_tokens: int,
    seed: int,
    split: Split = "train",
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (inputs, labels), both int64 [num_rows, num_tokens]; a label of -100 does not count."""
    stream = rows(tokenizer, num_tokens, seed, split)
    while True:
        drawn = list(itertools.islice(stream, num_rows))
        ids = torch.tensor([tokens for tokens, _ in drawn])
        predicted = torch.tensor([counts for _, counts in drawn])
        yield ids[:, :-1], ids[:, 1:].masked_fill(~predicted[:, 1:], -100)
