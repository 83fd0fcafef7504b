"""A model divided among ranks is the same model: logits of every family, in every way that it can be divided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from paged_backend.config import ModelConfig
from paged_backend.errors import ConfigError
from paged_backend.kernels.cpu.kernels import CpuKernels
from paged_backend.kernels.interface import Kernels
from paged_backend.kernels.reference.kernels import ReferenceKernels
from paged_backend.models.loader import LoadedModel, load_model
from paged_backend.models.shard import Shard
from tests.models.step_driver import chunked_logits
from tests.models.thread_ranks import on_each_rank
from tests.tiny_models import make_tiny_model

TOKENS = [3 * i % 317 + 2 for i in range(21)]
CHUNKS = (13, 7, 1)
THREE = {"num_attention_heads": 6, "num_key_value_heads": 3}
BIASES = {"attention_bias": True, "mlp_bias": True}
WIDE = {"hidden_size": 128, "intermediate_size": 256}
"""Whose halves are whole groups of 64."""


def load(folder: Path, kernels: Kernels, shard: Shard, quantization: str | None = None) -> LoadedModel:
    return load_model(ModelConfig(model=str(folder), quantization=quantization), kernels, shard=shard)


def logits(folder: Path, size: int, make: type[Kernels], quantization: str | None = None) -> list[torch.Tensor]:
    """Of all positions, from each rank."""

    def compute(shard: Shard) -> torch.Tensor:
        kernels = CpuKernels(1) if make is CpuKernels else make()
        return chunked_logits(load(folder, kernels, shard, quantization), kernels, TOKENS, CHUNKS)

    return on_each_rank(size, compute)


@pytest.mark.parametrize("make", [ReferenceKernels, CpuKernels])
@pytest.mark.parametrize(
    ("family", "size", "overrides"),
    [
        pytest.param("llama", 2, {}, id="llama"),
        pytest.param(
            "llama",
            4,
            {**BIASES, "tie_word_embeddings": True},
            id="fewer kv heads than ranks",
        ),
        pytest.param("llama", 2, {"num_key_value_heads": 1, "vocab_size": 323}, id="one kv head, odd vocabulary"),
        pytest.param("qwen3", 2, {}, id="head norms"),
        pytest.param("qwen2", 2, {}, id="biases of queries, keys and values"),
        pytest.param("gpt2", 2, {"vocab_size": 321}, id="gpt2: fused, transposed, tied"),
        pytest.param("opt", 2, {"do_layer_norm_before": False, "word_embed_proj_dim": 32}, id="opt: projected"),
    ],
)
def test_ranks_give_the_whole_models_logits(
    family: str, size: int, overrides: dict[str, Any], make: type[Kernels], tmp_path: Path
) -> None:
    folder = make_tiny_model(family, tmp_path, **overrides)
    (whole,) = logits(folder, 1, make)
    parts = logits(folder, size, make)
    assert parts[0].shape == whole.shape
    # float32 sums in another order: a few units in the last place of the largest logits.
    torch.testing.assert_close(parts[0], whole, rtol=1e-4, atol=2e-5 * float(whole.abs().max()))
    assert all(torch.equal(part, parts[0]) for part in parts)


@pytest.mark.parametrize("quantization", ["int8", "int4", "fp8"])
def test_quantized_weights_are_the_same_numbers_in_parts(quantization: str, tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path, **WIDE)
    (whole,) = logits(folder, 1, ReferenceKernels, quantization)
    parts = logits(folder, 2, ReferenceKernels, quantization)
    torch.testing.assert_close(parts[0], whole, rtol=1e-4, atol=2e-5 * float(whole.abs().max()))


def test_each_rank_holds_its_part_alone(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path, tie_word_embeddings=False)

    def sizes(shard: Shard) -> list[int]:
        decoder = load(folder, ReferenceKernels(), shard).decoder
        layer = decoder.layers[0]
        linears = (
            layer.attention.qkv,
            layer.attention.output.weight,
            layer.mlp.inner,
            layer.mlp.outer.weight,
            decoder.lm_head,
        )
        return [linear.num_bytes for linear in linears] + [decoder.embedding[0].nbytes * (len(decoder.embedding) - 1)]

    ((*whole, embedding),) = on_each_rank(1, sizes)
    vocab_row = embedding // 319  # the whole one has no row of zeros
    for *part, rows in on_each_rank(2, sizes):
        assert [2 * size for size in part] == whole
        assert rows == 160 * vocab_row


@pytest.mark.parametrize(
    ("family", "size", "overrides", "quantization", "match"),
    [
        ("llama", 3, {}, None, "4 attention heads"),
        ("llama", 4, {"intermediate_size": 90}, None, r"90 numbers .*intermediate_size"),
        (
            "llama",
            2,
            {"hidden_size": 96, **THREE},
            None,
            "3 key/value heads",
        ),
        ("llama", 2, {}, "int4", "32 inputs.*64 that share a scale"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    family: str, size: int, overrides: dict[str, Any], quantization: str | None, match: str, tmp_path: Path
) -> None:
    folder = make_tiny_model(family, tmp_path, **overrides)
    with pytest.raises(ConfigError, match=f"tensor_parallel_size {size} does not fit: .*{match}"):
        load(folder, ReferenceKernels(), Shard(rank=1, size=size), quantization)
