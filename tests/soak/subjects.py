"""What is soaked: random weights of several families and dtypes, and the bundled model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paged_backend.config import BUNDLED_MODEL
from paged_backend.engine.core import EngineCore
from paged_backend.engine.tokenizer import Tokenizer
from paged_backend.models.folder import read_json, resolve_folder
from paged_backend.structured.compiler import GrammarCompiler
from paged_backend.structured.vocabulary import Vocabulary
from tests.engine_driver import new_core
from tests.tiny_models import make_tiny_model

MAX_MODEL_LEN = 512
"""Tokens of a sequence at most."""


@dataclass(frozen=True)
class Recipe:
    """How a model is made and held.

    Attributes:
        family: of `make_tiny_model`, or the bundled model's name.
        overrides: changes of the family's configuration.
        arguments: the engine's.
    """

    family: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)


_WINDOWS = {"sliding_window": 40}
_MIXED_WINDOWS = {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1}
_WIDER = {"hidden_size": 96, "intermediate_size": 200}
_ROOM = {"vocab_size": 328}  # Qwen2's tokenizer brings a token of its own, and grammars want to know all of them
RECIPES: dict[str, Recipe] = {
    "llama-float32": Recipe("llama"),
    "qwen2-mixed-windows": Recipe("qwen2", _MIXED_WINDOWS, {"dtype": "bfloat16"}),
    "llama-int8": Recipe("llama", _WIDER, {"quantization": "int8", "kv_cache_dtype": "int8"}),
    "mistral-windows-float16": Recipe("mistral", _WINDOWS, {"dtype": "float16", "kv_cache_dtype": "float16"}),
    "qwen3-bfloat16": Recipe("qwen3", {}, {"dtype": "bfloat16", "kv_cache_dtype": "bfloat16"}),
    "qwen2-mixed-windows-int4": Recipe(
        "qwen2", {**_WIDER, **_MIXED_WINDOWS}, {"quantization": "int4", "kv_cache_dtype": "int8"}
    ),
    "gpt2-float32": Recipe("gpt2"),
    "opt-bfloat16": Recipe("opt", {}, {"dtype": "bfloat16", "kv_cache_dtype": "bfloat16"}),
    "bundled": Recipe(BUNDLED_MODEL),
    "bundled-int8": Recipe(BUNDLED_MODEL, {}, {"quantization": "int8", "kv_cache_dtype": "int8"}),
}


class SharedCompiler(GrammarCompiler):
    """One for all engines of a subject: it outlives each."""

    def close(self) -> None:
        """Not with an engine."""


@dataclass(frozen=True)
class Subject:
    """A model on disk, from which engines are started.

    Attributes:
        vocab_size: of the model; a tokenizer may know more.
        arguments: the engine's, wherever it runs.
        compiler: of the requests' grammars.
    """

    folder: Path
    tokenizer: Tokenizer
    vocab_size: int
    arguments: Mapping[str, Any]
    compiler: SharedCompiler

    @classmethod
    def make(cls, recipe: Recipe, folder: Path) -> Subject:
        """Makes the model in a folder; the bundled one is used where it is."""
        if recipe.family == BUNDLED_MODEL:
            folder = resolve_folder(BUNDLED_MODEL)
        else:
            longest = "n_positions" if recipe.family == "gpt2" else "max_position_embeddings"
            make_tiny_model(
                recipe.family, folder, tokenizer=True, **{longest: MAX_MODEL_LEN, **_ROOM}, **recipe.overrides
            )
        vocab_size = read_json(folder / "config.json")["vocab_size"]
        tokenizer = Tokenizer.load(folder)
        eos_token_id = read_json(folder / "config.json")["eos_token_id"]
        compiler = SharedCompiler(Vocabulary(tokenizer.to_json(), vocab_size, [eos_token_id]))
        return cls(folder, tokenizer, vocab_size, recipe.arguments, compiler)

    def start(self, **arguments: Any) -> EngineCore:
        """An engine that has seen nothing."""
        own = {"max_model_len": MAX_MODEL_LEN, "compiler": self.compiler}
        return new_core(self.folder, self.tokenizer, **own, **self.arguments, **arguments)
