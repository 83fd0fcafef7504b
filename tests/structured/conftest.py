"""A vocabulary to compile for, and a compiler of its grammars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paged_backend.sampling_params import StructuredOutputsParams
from paged_backend.structured.compiler import GrammarCompiler
from paged_backend.structured.matcher import Matcher
from paged_backend.structured.source import GrammarSource
from paged_backend.structured.vocabulary import Vocabulary
from tests.tiny_models import make_tokenizer

EOS = 1
VOCAB_SIZE = 330
"""Ten more than the tokenizer knows."""

Compile = Callable[..., Matcher]


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="session")
def vocabulary(tokenizer: Any) -> Vocabulary:
    return Vocabulary(tokenizer.backend_tokenizer.to_str(), VOCAB_SIZE, [EOS])


@pytest.fixture(scope="session")
def compiler(vocabulary: Vocabulary) -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(vocabulary)
    yield compiler
    compiler.close()


@pytest.fixture(scope="session")
def compile_grammar(compiler: GrammarCompiler) -> Compile:
    """From the arguments of StructuredOutputsParams to a matcher, or what refuses them."""

    def compile_grammar(num_samples: int = 1, **params: Any) -> Matcher:
        return compiler.compile(GrammarSource.of(StructuredOutputsParams(**params)), num_samples).matcher.result(30)

    return compile_grammar


@pytest.fixture
def model_store() -> Path:
    return Path(__file__).resolve().parents[2] / "model_store"
