"""Rotary tables are transformers' own, and partial rotation leaves room."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from paged_backend.models.architecture import RotarySpec
from paged_backend.models.rope_config import read_rotary
from paged_backend.models.rotary import rotary_tables

HEAD_DIM = 64
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 10000.0},
        {"rope_type": "default", "rope_theta": 1000000.0},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, **LLAMA3},
        {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 512},
        {
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 32.0,
            "original_max_position_embeddings": 64,
            "truncate": False,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
        },
        {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 512,
            "mscale": 0.7,
            "mscale_all_dim": 1.0,
        },
        {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 512,
            "attention_factor": 0.9,
        },
    ],
)
def test_tables_equal_transformers(rope: dict[str, Any]) -> None:
    config = LlamaConfig(
        hidden_size=2 * HEAD_DIM,
        num_attention_heads=2,
        max_position_embeddings=2048,
        rope_parameters=dict(rope),
    )
    positions = torch.arange(2048)
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1, dtype=torch.float32), positions[None])
    spec, max_positions = read_rotary({"max_position_embeddings": 2048, "rope_parameters": rope}, HEAD_DIM)
    assert max_positions == 2048
    own_cos, own_sin = rotary_tables(spec, 2048)
    torch.testing.assert_close(own_cos, cos[0], rtol=0, atol=3e-5)
    torch.testing.assert_close(own_sin, sin[0], rtol=0, atol=3e-5)


def test_partial_tables() -> None:
    cos, sin = rotary_tables(RotarySpec(dim=16), 10)
    assert cos.shape == sin.shape == (10, 16)
    assert torch.equal(cos[0], torch.ones(16))


def test_defaults() -> None:
    spec, max_positions = read_rotary({"max_position_embeddings": 100}, 32)
    assert (spec.kind, spec.theta, spec.dim, max_positions) == ("default", 10000.0, 32, 100)
    spec, _ = read_rotary({"max_position_embeddings": 100, "rope_theta": 5e5, "rope_scaling": None}, 32)
    assert spec.theta == 5e5
