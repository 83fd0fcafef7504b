"""Model folders of real shapes with random weights, so that benchmarks need no download.

    python -m benchmarks.models smollm2-135m FOLDER

A folder is what Hugging Face tools expect: config.json, model.safetensors (bfloat16), tokenizer. Weights are drawn
with a fixed seed: matrices from normal(0, 1.25 / sqrt(inputs)), embeddings from normal(0, 0.1), norms from
normal(1, 0.1). Transformers' own initialisation, 0.02 everywhere, makes a Llama say one token for ever, which would
compare well with any other engine's; with these scales nearly every greedy token is a new one, logits have a standard
deviation of 2.4, and the best leads the second by 0.35 (medians of the 135M shape). The tokenizer is the bundled
model's byte-level BPE, filled up with made-up words to the shape's vocabulary: so every id has a text, and streams of
random ids look like streams of text to a host.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file

SEED: Final = 0
MATRIX_GAIN: Final = 1.25
EMBEDDING_STD: Final = 0.1
NORM_STD: Final = 0.1
_TOKENIZER_FOLDER: Final = Path(__file__).resolve().parent.parent / "model_store" / "paged-tiny"


@dataclass(frozen=True)
class Shape:
    """What config.json says about a Llama or Qwen3 model; all sizes in elements."""

    architecture: str
    model_type: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rope_theta: float
    max_position_embeddings: int
    rms_norm_eps: float
    qk_norm: bool
    tie_word_embeddings: bool = True
    rope_scaling: Mapping[str, Any] | None = None

    def config(self) -> dict[str, Any]:
        """config.json, with the keys of the checkpoints on the hub."""
        return {
            "architectures": [self.architecture],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": self.model_type,
            "num_attention_heads": self.num_heads,
            "num_hidden_layers": self.num_layers,
            "num_key_value_heads": self.num_kv_heads,
            "pad_token_id": 1,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_scaling": dict(self.rope_scaling) if self.rope_scaling is not None else None,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": self.vocab_size,
        }

    def weights(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every tensor in the checkpoint; a matrix is (outputs, inputs)."""
        q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        yield "model.embed_tokens.weight", (self.vocab_size, self.hidden_size)
        for index in range(self.num_layers):
            layer = f"model.layers.{index}."
            yield layer + "input_layernorm.weight", (self.hidden_size,)
            yield layer + "self_attn.q_proj.weight", (q_size, self.hidden_size)
            yield layer + "self_attn.k_proj.weight", (kv_size, self.hidden_size)
            yield layer + "self_attn.v_proj.weight", (kv_size, self.hidden_size)
            yield layer + "self_attn.o_proj.weight", (self.hidden_size, q_size)
            if self.qk_norm:
                yield layer + "self_attn.q_norm.weight", (self.head_dim,)
                yield layer + "self_attn.k_norm.weight", (self.head_dim,)
            yield layer + "post_attention_layernorm.weight", (self.hidden_size,)
            yield layer + "mlp.gate_proj.weight", (self.intermediate_size, self.hidden_size)
            yield layer + "mlp.up_proj.weight", (self.intermediate_size, self.hidden_size)
            yield layer + "mlp.down_proj.weight", (self.hidden_size, self.intermediate_size)
        yield "model.norm.weight", (self.hidden_size,)
        if not self.tie_word_embeddings:
            yield "lm_head.weight", (self.vocab_size, self.hidden_size)


SHAPES: Final = {
    "smollm2-135m": Shape(
        architecture="LlamaForCausalLM",
        model_type="llama",
        hidden_size=576,
        intermediate_size=1536,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        vocab_size=49152,
        rope_theta=100_000.0,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        qk_norm=False,
    ),
    "qwen3-0.6b": Shape(
        architecture="Qwen3ForCausalLM",
        model_type="qwen3",
        hidden_size=1024,
        intermediate_size=3072,
        num_layers=28,
        num_heads=16,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=151_936,
        rope_theta=1_000_000.0,
        max_position_embeddings=40_960,
        rms_norm_eps=1e-6,
        qk_norm=True,
    ),
    "llama-3.2-1b": Shape(
        architecture="LlamaForCausalLM",
        model_type="llama",
        hidden_size=2048,
        intermediate_size=8192,
        num_layers=16,
        num_heads=32,
        num_kv_heads=8,
        head_dim=64,
        vocab_size=128_256,
        rope_theta=500_000.0,
        max_position_embeddings=131_072,
        rms_norm_eps=1e-5,
        qk_norm=False,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
    "llama-3-8b": Shape(
        architecture="LlamaForCausalLM",
        model_type="llama",
        hidden_size=4096,
        intermediate_size=14_336,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=128_256,
        rope_theta=500_000.0,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        qk_norm=False,
        tie_word_embeddings=False,
    ),
    "llama-2-7b": Shape(
        architecture="LlamaForCausalLM",
        model_type="llama",
        hidden_size=4096,
        intermediate_size=11_008,
        num_layers=32,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        vocab_size=32_000,
        rope_theta=10_000.0,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        qk_norm=False,
        tie_word_embeddings=False,
    ),
}


def default_cache_folder() -> Path:
    """`$XDG_CACHE_HOME/paged-backend/bench`; without the variable, under ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paged-backend" / "bench"


def ensure_model(name: str, cache_folder: Path | None = None, *, device: str = "cpu") -> Path:
    """The folder of the named shape, built first if it is not there.

    Args:
        name: a key of `SHAPES`.
        cache_folder: where models are kept; None means `default_cache_folder()`.
        device: see `build_model`.
    """
    folder = (cache_folder or default_cache_folder()) / name
    if not folder.exists():
        build_model(name, folder, device=device)
    return folder


def build_model(name: str, folder: Path, *, device: str = "cpu") -> None:
    """Writes the model into `folder`, which must not exist; the folder appears only when it is complete.

    Args:
        device: what draws the weights. A GPU is quicker, and draws other ones.

    Raises:
        ValueError: no such shape.
        FileExistsError: the folder is there already.
    """
    if name not in SHAPES:
        raise ValueError(f"no shape {name!r}; there are {', '.join(SHAPES)}")
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; remove it, or choose another folder")
    shape = SHAPES[name]
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    try:
        _write_json(unfinished / "config.json", shape.config())
        _write_json(
            unfinished / "generation_config.json",
            {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1, "do_sample": False},
        )
        save_file(_random_weights(shape, device), unfinished / "model.safetensors", metadata={"format": "pt"})
        _write_tokenizer(unfinished, shape)
        unfinished.chmod(0o755)  # mkdtemp's are private
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _random_weights(shape: Shape, device: str) -> dict[str, torch.Tensor]:
    """bfloat16 tensors by name, on the CPU; drawn there they are the same on every machine."""
    generator = torch.Generator(device).manual_seed(SEED)
    weights = {}
    for name, size in shape.weights():
        drawn = torch.randn(size, generator=generator, device=device)
        if len(size) == 1:
            drawn.mul_(NORM_STD).add_(1.0)
        elif "embed" in name:
            drawn.mul_(EMBEDDING_STD)
        else:
            drawn.mul_(MATRIX_GAIN / math.sqrt(size[1]))
        weights[name] = drawn.to(torch.bfloat16).cpu()
    return weights


def _write_tokenizer(folder: Path, shape: Shape) -> None:
    tokenizer = json.loads((_TOKENIZER_FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    num_known = max([*vocab.values(), *(token["id"] for token in tokenizer["added_tokens"])]) + 1
    for index in range(num_known, shape.vocab_size):
        vocab[f"Ġw{index}"] = index  # Ġ is byte-level BPE's space
    assert len(set(vocab.values())) == len(vocab)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    settings = json.loads((_TOKENIZER_FOLDER / "tokenizer_config.json").read_text(encoding="utf-8"))
    _write_json(folder / "tokenizer_config.json", settings | {"model_max_length": shape.max_position_embeddings})
    shutil.copyfile(_TOKENIZER_FOLDER / "chat_template.jinja", folder / "chat_template.jinja")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Builds one model."""
    parser = argparse.ArgumentParser(description="Builds a model folder with random weights.")
    parser.add_argument("name", choices=list(SHAPES))
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    build_model(args.name, args.folder)
    print(args.folder)


if __name__ == "__main__":
    main()
