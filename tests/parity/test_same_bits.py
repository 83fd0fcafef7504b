"""A row's logits are the same bits alone, in any batch, chunks and blocks, and with any number of threads."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from paged_backend.config import ModelConfig
from paged_backend.executor.kv_storage import KVStorage
from paged_backend.kernels.registry import select_kernels
from paged_backend.models.loader import load_model
from tests.models.step_driver import build_inputs, scheduled
from tests.tiny_models import VOCAB_SIZE, make_tiny_model

BLOCK_SIZE = 8
LENGTHS = (1, 5, 33, 64, 100, 17, 2, 130)
NUM_BLOCKS = sum(-(-length // BLOCK_SIZE) for length in LENGTHS) + 5
VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    # Family, changes of the model, arguments of its loading, dtype of the cache.
    "float32": ("llama", {}, {}, "float32"),
    "bfloat16": ("qwen3", {"tie_word_embeddings": True}, {"dtype": "bfloat16"}, "bfloat16"),
    "float16, windows": ("mistral", {"sliding_window": 40}, {"dtype": "float16"}, "float16"),
    "int8": ("llama", {"hidden_size": 96, "intermediate_size": 200}, {"quantization": "int8"}, "int8"),
    "int4": ("qwen2", {"hidden_size": 96, "intermediate_size": 200}, {"quantization": "int4"}, "int8"),
    "layer norms": ("gpt2", {}, {}, "float32"),
    "post-norm": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 32}, {}, "bfloat16"),
}


class Model:
    """A model on the C++ kernels, with a cache whose blocks are dealt in an order of its own."""

    def __init__(self, folder: Path, arguments: dict[str, Any], cache_dtype: str, num_threads: int, seed: int) -> None:
        kernels = select_kernels("cpu", num_threads=num_threads)
        model = load_model(ModelConfig(model=str(folder), **arguments), kernels)
        storage = KVStorage(model.architecture, NUM_BLOCKS, BLOCK_SIZE, cache_dtype)
        self._run = kernels.compile(lambda kernels, inputs: model.decoder(kernels, inputs, storage.layers))
        order = random.Random(seed).sample(range(NUM_BLOCKS), NUM_BLOCKS)
        self._tables = []
        for length in LENGTHS:
            count = -(-length // BLOCK_SIZE)
            self._tables.append(order[:count])
            order = order[count:]
        generator = torch.Generator().manual_seed(3)
        self._tokens = [torch.randint(2, VOCAB_SIZE, (n,), generator=generator).tolist() for n in LENGTHS]

    def step(self, parts: Sequence[tuple[int, int, int]], wanted: Tensor | None = None) -> list[Tensor]:
        """Logits of parts (sequence, first token, end), computed in one step; with `wanted` rows, as one tensor."""
        shares = [
            scheduled(index, self._tokens[index][:end], begin, self._tables[index], params=None)
            for index, begin, end in parts
        ]
        logits = self._run(replace(build_inputs(shares, BLOCK_SIZE), logits_rows=wanted)).clone()
        return [logits] if wanted is not None else list(logits.split([end - begin for _, begin, end in parts]))


@pytest.fixture(scope="module", params=tuple(VARIANTS))
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(variant: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, overrides, _, _ = VARIANTS[variant]
    return make_tiny_model(family, tmp_path_factory.mktemp("model"), **overrides)


def new_model(folder: Path, variant: str, *, num_threads: int = 1, seed: int = 0) -> Model:
    return Model(folder, VARIANTS[variant][2], VARIANTS[variant][3], num_threads, seed)


@pytest.fixture(scope="module")
def alone(folder: Path, variant: str) -> list[Tensor]:
    """Each sequence by itself, whole, on one thread."""
    model = new_model(folder, variant)
    logits = [model.step([(index, 0, length)])[0] for index, length in enumerate(LENGTHS)]
    assert all(rows.isfinite().all() for rows in logits)
    return logits


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_in_one_batch(folder: Path, variant: str, alone: list[Tensor], num_threads: int) -> None:
    model = new_model(folder, variant, num_threads=num_threads, seed=1)
    together = model.step([(index, 0, length) for index, length in enumerate(LENGTHS)])
    for expected, logits in zip(alone, together, strict=True):
        assert torch.equal(logits, expected)


@pytest.mark.parametrize("seed", range(4))
def test_in_random_chunks_and_company(folder: Path, variant: str, alone: list[Tensor], seed: int) -> None:
    """Steps of some sequences each, with chunks from one token to all that are left."""
    rng = random.Random(seed)
    model = new_model(folder, variant, num_threads=1 + seed % 3, seed=seed)
    done = [0] * len(LENGTHS)
    while any(count < length for count, length in zip(done, LENGTHS, strict=True)):
        left = [index for index, length in enumerate(LENGTHS) if done[index] < length]
        parts = []
        for index in rng.sample(left, rng.randint(1, len(left))):
            end = min(LENGTHS[index], done[index] + rng.choice((1, 1, 2, 3, 7, 16, 31, 200)))
            parts.append((index, done[index], end))
        for (index, begin, end), logits in zip(parts, model.step(parts), strict=True):
            assert torch.equal(logits, alone[index][begin:end]), f"sequence {index}, tokens {begin}..{end - 1}"
            done[index] = end


@pytest.mark.parametrize("rows", [[], [0], [38, 3, 102], list(range(0, 100, 7))], ids=len)
def test_only_some_rows(folder: Path, variant: str, alone: list[Tensor], rows: list[int]) -> None:
    """The last layer goes on with the wanted rows alone."""
    model = new_model(folder, variant, seed=2)
    parts = [(index, 0, LENGTHS[index]) for index in range(4)]
    (logits,) = model.step(parts, torch.tensor(rows, dtype=torch.int64))
    assert torch.equal(logits, torch.cat(alone[:4])[rows])


def test_again_on_a_used_cache(folder: Path, variant: str, alone: list[Tensor]) -> None:
    """A decode after other sequences' steps, as with a warm prefix: all but the last token are there already."""
    model = new_model(folder, variant, num_threads=2, seed=3)
    model.step([(index, 0, length) for index, length in enumerate(LENGTHS)])
    parts = [(index, length - 1, length) for index, length in enumerate(LENGTHS)]
    for expected, logits in zip(alone, model.step(parts), strict=True):
        assert torch.equal(logits, expected[-1:])
