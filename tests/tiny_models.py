"""Small models with random weights, one per family, made by transformers itself: what tests compare with."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.utils import logging

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gpt2", "opt")
"""What `make_tiny_model` can make."""

VOCAB_SIZE = 320
"""Of every model here, unless overridden: 256 bytes, special tokens and some merges."""

_WEIGHT_SCALE = 9.0
"""Default random matrices are so small that a tied model repeats one token; these make outputs vary."""

_TABLES = ("embed_tokens", "wte", "lm_head")
"""Left as they are: larger ones would make a tied model repeat what it last saw."""

_COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
_LLAMA_LIKE = {**_COMMON, "intermediate_size": 96, "num_key_value_heads": 2}
_GPT2 = {
    "vocab_size": VOCAB_SIZE,
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, _LLAMA_LIKE),
    "mistral": (MistralConfig, {**_LLAMA_LIKE, "sliding_window": 24}),
    "qwen2": (Qwen2Config, _LLAMA_LIKE),
    "qwen3": (Qwen3Config, {**_LLAMA_LIKE, "head_dim": 24}),
    "gpt2": (GPT2Config, _GPT2),
    "opt": (OPTConfig, {**_COMMON, "ffn_dim": 128}),
}
_TEXT = (
    "The quick brown fox jumps over the lazy dog.",
    "A small model reads a few short lines of text, and learns how to cut them into pieces.",
    "Numbers like 12, 345 and 6789 are text as well; so are naïve, Straße and 東京.",
)
_CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_tiny_model(
    family: str,
    folder: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "1GB",
    tokenizer: bool = False,
    **overrides: Any,
) -> Path:
    """Saves a model with `save_pretrained`.

    Args:
        family: one of FAMILIES.
        folder: where to; made if need be.
        seed: of the random weights.
        dtype: of the checkpoint.
        max_shard_size: a small one ("50KB") makes several files with an index.
        tokenizer: also save a byte-level BPE tokenizer of VOCAB_SIZE tokens, with a chat template.
        overrides: arguments for the family's configuration class.

    Returns:
        The folder.
    """
    kind, defaults = _CONFIGS[family]
    torch.manual_seed(seed)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model = AutoModelForCausalLM.from_config(kind(**{**defaults, **overrides}))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1:
                    # Biases of 0 and norm weights of 1 would hide one that is not applied.
                    parameter.add_(torch.randn_like(parameter) * 0.2)
                elif not any(part in name for part in _TABLES):
                    parameter.mul_(_WEIGHT_SCALE)
        with contextlib.redirect_stderr(io.StringIO()):
            model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    finally:
        logging.set_verbosity(verbosity)
    if tokenizer:
        make_tokenizer().save_pretrained(folder)
    return folder


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = _CHAT_TEMPLATE
    return fast
