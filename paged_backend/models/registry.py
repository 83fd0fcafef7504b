"""Which families are known: how each one's config.json reads, and what its weights are called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from paged_backend.errors import ModelLoadError
from paged_backend.kernels.reference.activation import ACTIVATIONS
from paged_backend.models.architecture import Architecture
from paged_backend.models.rope_config import read_rotary


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightNames:
    """Under which names a family's checkpoints hold their tensors, without ".weight" and ".bias".

    Attributes:
        prefix: a first part that some checkpoints of the family leave out ("transformer." in GPT-2's own).
        embedding, positions, project_in, project_out, final_norm, lm_head: outside the layers.
        attention_norm, mlp_norm: "{}" is the layer's index, here and below.
        qkv: query, key and value; one name where they are stored as one tensor.
        query_norm, key_norm, attention_output: the rest of the attention.
        mlp_in: gate and up, or the one that goes in.
        mlp_out: the one that comes out.
        transposed: matrices are stored as [inputs, outputs] (GPT-2's Conv1D).
        ignored: regular expressions for whole names of tensors that carry nothing (buffers).
    """

    prefix: str
    embedding: str
    final_norm: str
    attention_norm: str
    mlp_norm: str
    qkv: tuple[str, ...]
    attention_output: str
    mlp_in: tuple[str, ...]
    mlp_out: str
    lm_head: str = "lm_head"
    positions: str = ""
    project_in: str = ""
    project_out: str = ""
    query_norm: str = ""
    key_norm: str = ""
    transposed: bool = False
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One model_type.

    Attributes:
        defaults: what config.json may leave out, as in transformers' configuration class of the family.
        read: makes the description out of config.json, defaults filled in.
        weights: the checkpoint's names.
    """

    read: Callable[[Mapping[str, Any]], Architecture]
    weights: WeightNames
    defaults: Mapping[str, Any] = field(default_factory=dict)


def read_architecture(config: Mapping[str, Any]) -> tuple[Architecture, WeightNames]:
    """Describes the network that a config.json declares.

    Raises:
        ModelLoadError: the family is unknown, or a value is missing or not supported.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ModelLoadError(
            f"config.json says model_type {model_type!r}, which is not supported. Supported: {', '.join(FAMILIES)}."
        )
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown")
        raise ModelLoadError(
            f"The checkpoint is quantized ({method}), which is not supported: use the float32, float16 or bfloat16 one."
        )
    family = FAMILIES[model_type]
    values = {**family.defaults, **config}
    try:
        architecture = family.read(values)
    except KeyError as error:
        raise ModelLoadError(f"config.json of this {model_type} model lacks {error}.") from error
    except (TypeError, ValueError) as error:
        raise ModelLoadError(f"config.json of this {model_type} model has a wrong value: {error}.") from error
    _check(architecture)
    return architecture, family.weights


def _check(architecture: Architecture) -> None:
    for name in (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_layers",
        "num_heads",
        "head_dim",
        "max_positions",
    ):
        value = getattr(architecture, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ModelLoadError(f"config.json gives {name} {value!r}, which must be an integer of at least 1.")
    kv_heads = architecture.num_kv_heads
    if not isinstance(kv_heads, int) or kv_heads < 1 or architecture.num_heads % kv_heads:
        raise ModelLoadError(
            f"config.json gives {architecture.num_heads} attention heads and {kv_heads} key/value heads: "
            "the first must be a multiple of the second."
        )
    if architecture.activation not in ACTIVATIONS:
        raise ModelLoadError(
            f"config.json asks for the activation {architecture.activation!r}. Supported: {', '.join(ACTIVATIONS)}."
        )


def eos_token_ids(config: Mapping[str, Any]) -> frozenset[int]:
    """What a config.json or generation_config.json says ends a text; the vocabulary may lack some of them.

    Raises:
        ValueError: it is not an integer or a list of them.
    """
    eos = config.get("eos_token_id")
    ids = [] if eos is None else eos if isinstance(eos, list) else [eos]
    if any(isinstance(token, bool) or not isinstance(token, int) for token in ids):
        raise ValueError(f"eos_token_id is {eos!r}, which must be an integer or a list of them")
    return frozenset(ids)


def _head_dim(config: Mapping[str, Any]) -> int:
    head_dim = config.get("head_dim")
    if head_dim is not None:
        return int(head_dim)
    hidden_size, num_heads = config["hidden_size"], config["num_attention_heads"]
    if hidden_size % num_heads:
        raise ValueError(f"hidden_size {hidden_size} is not a multiple of num_attention_heads {num_heads}")
    return int(hidden_size // num_heads)


def _read_llama_like(config: Mapping[str, Any]) -> Architecture:
    """Llama and those who came after it: RMS norms, rotary positions, gated feed-forward."""
    model_type: str = config["model_type"]
    # Qwen2 always has biases on query, key and value alone; elsewhere attention_bias switches all four.
    attention_bias = bool(config["attention_bias"])
    head_dim = _head_dim(config)
    num_layers: int = config["num_hidden_layers"]
    num_kv_heads = config.get("num_key_value_heads")
    rotary, max_positions = read_rotary(config, head_dim)
    return Architecture(
        model_type=model_type,
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        embedding_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=num_layers,
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_attention_heads"] if num_kv_heads is None else num_kv_heads,
        head_dim=head_dim,
        max_positions=max_positions,
        norm="rms",
        norm_eps=config["rms_norm_eps"],
        qk_norm=model_type == "qwen3",
        qkv_bias=attention_bias or model_type == "qwen2",
        attention_output_bias=attention_bias and model_type != "qwen2",
        mlp_bias=bool(config["mlp_bias"]),
        activation=config["hidden_act"],
        rotary=rotary,
        attention_scales=(head_dim**-0.5,) * num_layers,
        sliding_windows=_sliding_windows(config, num_layers),
        tied_embeddings=bool(config["tie_word_embeddings"]),
        eos_token_ids=eos_token_ids(config),
    )


def _sliding_windows(config: Mapping[str, Any], num_layers: int) -> tuple[int, ...]:
    """Per layer, the tokens that a query sees (itself included), 0 for all; as transformers 5 reads it."""
    model_type = config["model_type"]
    window = config.get("sliding_window")
    if model_type == "mistral":
        return (window or 0,) * num_layers
    if model_type == "llama":
        return (0,) * num_layers
    if not config["use_sliding_window"]:
        window = None
    layer_types = config.get("layer_types")
    if layer_types is None:
        first = config["max_window_layers"]
        return tuple((window or 0) if layer >= first else 0 for layer in range(num_layers))
    if len(layer_types) != num_layers or set(layer_types) - {"full_attention", "sliding_attention"}:
        raise ValueError(f"layer_types must name full_attention or sliding_attention for each of {num_layers} layers")
    if window is None and "sliding_attention" in layer_types:
        raise ValueError("layer_types names sliding_attention, but use_sliding_window or sliding_window is not set")
    return tuple((window or 0) if kind == "sliding_attention" else 0 for kind in layer_types)


def _read_gpt2(config: Mapping[str, Any]) -> Architecture:
    num_layers, num_heads, hidden_size = config["n_layer"], config["n_head"], config["n_embd"]
    head_dim = _head_dim({"hidden_size": hidden_size, "num_attention_heads": num_heads})
    if config["add_cross_attention"]:
        raise ValueError("add_cross_attention is set, but only decoder-only models are supported")
    scale = head_dim**-0.5 if config["scale_attn_weights"] else 1.0
    by_layer = config["scale_attn_by_inverse_layer_idx"]
    inner = config.get("n_inner")
    return Architecture(
        model_type=config["model_type"],
        vocab_size=config["vocab_size"],
        hidden_size=hidden_size,
        embedding_size=hidden_size,
        intermediate_size=4 * hidden_size if inner is None else inner,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        max_positions=config["n_positions"],
        norm="layer",
        norm_eps=config["layer_norm_epsilon"],
        qkv_bias=True,
        attention_output_bias=True,
        mlp_bias=True,
        gated=False,
        activation=config["activation_function"],
        position_offset=0,
        attention_scales=tuple(scale / (layer + 1) if by_layer else scale for layer in range(num_layers)),
        sliding_windows=(0,) * num_layers,
        tied_embeddings=bool(config["tie_word_embeddings"]),
        eos_token_ids=eos_token_ids(config),
    )


def _read_opt(config: Mapping[str, Any]) -> Architecture:
    num_layers, num_heads, hidden_size = (
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config["hidden_size"],
    )
    head_dim = _head_dim({"hidden_size": hidden_size, "num_attention_heads": num_heads})
    embedding_size = config.get("word_embed_proj_dim")
    pre_norm = bool(config["do_layer_norm_before"])
    bias = bool(config["enable_bias"])
    return Architecture(
        model_type=config["model_type"],
        vocab_size=config["vocab_size"],
        hidden_size=hidden_size,
        embedding_size=hidden_size if embedding_size is None else embedding_size,
        intermediate_size=config["ffn_dim"],
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        max_positions=config["max_position_embeddings"],
        norm="layer",
        norm_eps=1e-5,
        norm_affine=bool(config["layer_norm_elementwise_affine"]),
        pre_norm=pre_norm,
        final_norm=pre_norm and not config["_remove_final_layer_norm"],
        qkv_bias=bias,
        attention_output_bias=bias,
        mlp_bias=bias,
        gated=False,
        activation=config["activation_function"],
        # Rows 0 and 1 of the table are left over from a padding scheme of OPT's training code.
        position_offset=2,
        attention_scales=(head_dim**-0.5,) * num_layers,
        sliding_windows=(0,) * num_layers,
        tied_embeddings=bool(config["tie_word_embeddings"]),
        eos_token_ids=eos_token_ids(config),
    )


_LLAMA_WEIGHTS = WeightNames(
    prefix="model.",
    embedding="model.embed_tokens",
    final_norm="model.norm",
    attention_norm="model.layers.{}.input_layernorm",
    mlp_norm="model.layers.{}.post_attention_layernorm",
    qkv=tuple(f"model.layers.{{}}.self_attn.{part}_proj" for part in "qkv"),
    query_norm="model.layers.{}.self_attn.q_norm",
    key_norm="model.layers.{}.self_attn.k_norm",
    attention_output="model.layers.{}.self_attn.o_proj",
    mlp_in=("model.layers.{}.mlp.gate_proj", "model.layers.{}.mlp.up_proj"),
    mlp_out="model.layers.{}.mlp.down_proj",
    ignored=(r".*\.rotary_emb\.inv_freq",),
)
_GPT2_WEIGHTS = WeightNames(
    prefix="transformer.",
    embedding="transformer.wte",
    positions="transformer.wpe",
    final_norm="transformer.ln_f",
    attention_norm="transformer.h.{}.ln_1",
    mlp_norm="transformer.h.{}.ln_2",
    qkv=("transformer.h.{}.attn.c_attn",),
    attention_output="transformer.h.{}.attn.c_proj",
    mlp_in=("transformer.h.{}.mlp.c_fc",),
    mlp_out="transformer.h.{}.mlp.c_proj",
    transposed=True,
    ignored=(r".*\.attn\.bias", r".*\.attn\.masked_bias"),
)
_OPT_WEIGHTS = WeightNames(
    prefix="model.",
    embedding="model.decoder.embed_tokens",
    positions="model.decoder.embed_positions",
    project_in="model.decoder.project_in",
    project_out="model.decoder.project_out",
    final_norm="model.decoder.final_layer_norm",
    attention_norm="model.decoder.layers.{}.self_attn_layer_norm",
    mlp_norm="model.decoder.layers.{}.final_layer_norm",
    qkv=tuple(f"model.decoder.layers.{{}}.self_attn.{part}_proj" for part in "qkv"),
    attention_output="model.decoder.layers.{}.self_attn.out_proj",
    mlp_in=("model.decoder.layers.{}.fc1",),
    mlp_out="model.decoder.layers.{}.fc2",
)

_LLAMA_DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}
_QWEN_DEFAULTS = {
    **_LLAMA_DEFAULTS,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

FAMILIES: Mapping[str, Family] = {
    "llama": Family(read=_read_llama_like, weights=_LLAMA_WEIGHTS, defaults=_LLAMA_DEFAULTS),
    "mistral": Family(
        read=_read_llama_like,
        weights=_LLAMA_WEIGHTS,
        defaults={
            **_LLAMA_DEFAULTS,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
            "num_key_value_heads": 8,
        },
    ),
    "qwen2": Family(read=_read_llama_like, weights=_LLAMA_WEIGHTS, defaults=_QWEN_DEFAULTS),
    "qwen3": Family(read=_read_llama_like, weights=_LLAMA_WEIGHTS, defaults={**_QWEN_DEFAULTS, "head_dim": 128}),
    "gpt2": Family(
        read=_read_gpt2,
        weights=_GPT2_WEIGHTS,
        defaults={
            "layer_norm_epsilon": 1e-5,
            "activation_function": "gelu_new",
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
            "tie_word_embeddings": True,
        },
    ),
    "opt": Family(
        read=_read_opt,
        weights=_OPT_WEIGHTS,
        defaults={
            "activation_function": "relu",
            "do_layer_norm_before": True,
            "_remove_final_layer_norm": False,
            "enable_bias": True,
            "layer_norm_elementwise_affine": True,
            "tie_word_embeddings": True,
        },
    ),
}
"""Every family that can be loaded, by config.json's model_type."""
