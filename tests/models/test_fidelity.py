"""Every family's logits are those of transformers in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from paged_backend.config import ModelConfig
from paged_backend.kernels.interface import Kernels
from paged_backend.kernels.registry import select_kernels
from paged_backend.models.loader import LoadedModel, load_model
from tests.models.step_driver import chunked_logits
from tests.tiny_models import FAMILIES, VOCAB_SIZE, make_tiny_model

KERNELS = {name: select_kernels(name, num_threads=1) for name in ("reference", "auto")}
backends = pytest.mark.parametrize("kernels", KERNELS.values(), ids=KERNELS.keys())
TOKENS = torch.randint(2, VOCAB_SIZE, (70,), generator=torch.Generator().manual_seed(5)).tolist()
CHUNKS = (1, 2, 30, 1, 1, 17, 18)

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama without groups": ("llama", {"num_key_value_heads": 4}),
    "llama one group": ("llama", {"num_key_value_heads": 1}),
    "llama wide heads": ("llama", {"head_dim": 40}),
    "llama gelu": ("llama", {"hidden_act": "gelu"}),
    "llama linear rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}},
    ),
    "llama dynamic rope": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
    ),
    "llama 3 rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "llama yarn rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mistral without window": ("mistral", {"sliding_window": None}),
    "mistral window of one": ("mistral", {"sliding_window": 1}),
    "qwen2 windows above layer 1": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
    ),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3 layer types": (
        "qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": 9,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "qwen3 with biases": ("qwen3", {"attention_bias": True}),
    "gpt2 scaled by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt2 unscaled": ("gpt2", {"scale_attn_weights": False, "n_inner": 100}),
    "gpt2 untied": ("gpt2", {"tie_word_embeddings": False}),
    "opt post-norm": ("opt", {"do_layer_norm_before": False}),
    "opt projected": ("opt", {"word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    "opt without final norm": ("opt", {"_remove_final_layer_norm": True}),
    "opt without biases": ("opt", {"enable_bias": False, "layer_norm_elementwise_affine": False}),
    "opt untied": ("opt", {"tie_word_embeddings": False, "activation_function": "gelu"}),
}


def expected_logits(folder: Path) -> torch.Tensor:
    """float32 [tokens, vocabulary], as transformers' plainest attention gives them."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        logits: torch.Tensor = model.eval()(torch.tensor([TOKENS])).logits[0]
    return logits


def load(folder: Path, kernels: Kernels, **arguments: Any) -> LoadedModel:
    return load_model(ModelConfig(model=str(folder), **arguments), kernels)


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    family, overrides = VARIANTS[name]
    folder = make_tiny_model(family, tmp_path, **overrides)
    expected = expected_logits(folder)
    assert expected.std(dim=0).mean() > 0.005, "a model that gives the same everywhere tests nothing"
    for kernels in KERNELS.values():
        model = load(folder, kernels)
        for chunks in ((len(TOKENS),), CHUNKS):
            logits = chunked_logits(model, kernels, TOKENS, chunks)
            assert logits.dtype == torch.float32
            torch.testing.assert_close(logits, expected, rtol=2e-4, atol=2e-4)
            assert torch.equal(logits.argmax(dim=-1), expected.argmax(dim=-1))


@backends
def test_the_window_matters(kernels: Kernels, tmp_path: Path) -> None:
    """Off by one in the window would change the logits by far more than the tolerance."""
    folders = [make_tiny_model("mistral", tmp_path / str(window), sliding_window=window) for window in (23, 24)]
    first, second = (chunked_logits(load(folder, kernels), kernels, TOKENS, CHUNKS) for folder in folders)
    torch.testing.assert_close(first[:23], second[:23], rtol=1e-4, atol=1e-4)
    assert (first[23:] - second[23:]).abs().amax() > 0.05


@backends
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_checkpoint_is_computed_in_float32(kernels: Kernels, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path, dtype=dtype)
    logits = chunked_logits(load(folder, kernels), kernels, TOKENS, CHUNKS)
    torch.testing.assert_close(logits, expected_logits(folder), rtol=2e-4, atol=2e-4)


@backends
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_rounded_to_bfloat16_are_near(kernels: Kernels, family: str, tmp_path: Path) -> None:
    folder = make_tiny_model(family, tmp_path)
    model = load(folder, kernels, dtype="bfloat16")
    assert model.decoder.embedding.dtype == torch.bfloat16
    logits, expected = chunked_logits(model, kernels, TOKENS, CHUNKS), expected_logits(folder)
    assert logits.dtype == torch.float32
    # Random weights enlarge rounding from layer to layer: the direction of the logits is what must stay.
    similarity = torch.nn.functional.cosine_similarity(logits, expected, dim=-1)
    assert similarity.median() > 0.98


@backends
@pytest.mark.parametrize("cache_dtype", ["bfloat16", "float16", "int8"])
def test_narrow_caches_are_near(kernels: Kernels, cache_dtype: str, tmp_path: Path) -> None:
    folder = make_tiny_model("qwen3", tmp_path)
    logits = chunked_logits(load(folder, kernels), kernels, TOKENS, CHUNKS, cache_dtype)
    similarity = torch.nn.functional.cosine_similarity(logits, expected_logits(folder), dim=-1)
    assert similarity.median() > 0.98


def test_sharded_checkpoint_is_the_same_model(tmp_path: Path) -> None:
    single = make_tiny_model("qwen3", tmp_path / "single")
    sharded = make_tiny_model("qwen3", tmp_path / "sharded", max_shard_size="60KB")
    assert (sharded / "model.safetensors.index.json").is_file()
    assert len(list(sharded.glob("*.safetensors"))) > 2
    kernels = KERNELS["reference"]
    logits = [chunked_logits(load(folder, kernels), kernels, TOKENS, CHUNKS) for folder in (single, sharded)]
    assert torch.equal(*logits)
