"""The tokenizer: byte-level BPE over the corpus, and the ChatML template.

Any text can be encoded, because all 256 bytes are in the vocabulary. Digits are tokens of their own, for
the sake of sums. `<|eos|>` separates documents and stands for the beginning too; encoding adds no token.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from model_store.recipe import corpus

EOS: Final = "<|eos|>"
PAD: Final = "<|pad|>"
TURN_START: Final = "<|im_start|>"
TURN_END: Final = "<|im_end|>"
SPECIAL_TOKENS: Final = (EOS, PAD, TURN_START, TURN_END)  # in the order of their ids
VOCAB_SIZE: Final = 2560
MAX_LENGTH: Final = 2048  # tokens
CHAT_TEMPLATE: Final = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
# A word or a mark takes the space before it along; a digit is always alone.
_PIECES: Final = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _texts(num_documents: int, seed: int) -> Iterator[str]:
    for document in itertools.islice(corpus.documents(seed), num_documents):
        yield document.text or "\n".join(f"user\n{asked}\nassistant\n{answer}" for asked, answer in document.turns)


def train(num_documents: int = 60_000, seed: int = 0) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the first `num_documents` of the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(num_documents, seed), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=EOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[TURN_START, TURN_END],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def load_or_train(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer saved in `folder`, trained and saved there first if there is none."""
    if not (folder / "tokenizer.json").exists():
        train().save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)
