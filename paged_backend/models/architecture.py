"""What a decoder is made of, as plain data: one `Architecture` describes one checkpoint's whole network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NormKind = Literal["rms", "layer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RotarySpec:
    """Rotary position embeddings (arXiv:2104.09864) and how they are stretched past the trained length.

    Attributes:
        kind: "default", "linear", "llama3" or "yarn".
        theta: base of the wavelengths.
        dim: how many numbers of each head are turned; even, at most the head size.
        factor: how many times longer than trained (every kind but "default").
        original_max_positions: the trained length ("llama3" and "yarn").
        low_freq_factor, high_freq_factor: bounds of llama3's smooth band, as fractions of the trained length.
        beta_fast, beta_slow: bounds of YaRN's ramp, in turns over the trained length (arXiv:2309.00071, 3.2).
        truncate: whether YaRN's bounds are rounded outwards to whole dimensions.
        attention_factor: what cos and sin are multiplied with (YaRN's temperature; else 1).
    """

    kind: Literal["default", "linear", "llama3", "yarn"] = "default"
    theta: float = 10000.0
    dim: int
    factor: float = 1.0
    original_max_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One decoder-only network.

    Attributes:
        model_type: the family's name in Hugging Face's config.json.
        vocab_size: rows of the embedding, and numbers in a row of logits.
        hidden_size: width of the residual stream.
        embedding_size: width of the embedding; where it differs from hidden_size (OPT-350m) two projections
            without bias lead in and out.
        intermediate_size: width inside the feed-forward part.
        num_layers, num_heads, num_kv_heads, head_dim: query head h reads key/value head
            h // (num_heads / num_kv_heads). num_heads * head_dim need not be hidden_size (Qwen3).
        max_positions: tokens in a sequence at most.
        norm: RMS norm, or layer norm with mean and (if norm_affine) bias.
        norm_eps: added to the mean square or the variance.
        norm_affine: whether norms have weights (and, for layer norms, biases).
        pre_norm: norm before each part (nearly all), or after its residual sum (OPT-350m).
        final_norm: whether a norm comes after the last layer.
        qk_norm: RMS norm over each head of query and key, before the rotation (Qwen3).
        qkv_bias, attention_output_bias, mlp_bias: which linear layers have biases.
        gated: feed-forward is down(activation(gate(x)) * up(x)), else down(activation(up(x))).
        activation: Hugging Face's name.
        rotary: rotary positions, or None.
        position_offset: first row used of a table of learned positions (OPT: 2), or None for no table.
        attention_scales: per layer, what scores are multiplied with.
        sliding_windows: per layer, how many tokens a query sees, itself included; 0 means all.
        attention_soft_cap, logit_soft_cap: bounds x to cap * tanh(x / cap); 0 means none.
        tied_embeddings: logits are taken with the embedding's weights.
        eos_token_ids: what config.json says ends a text.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    embedding_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    norm: NormKind
    norm_eps: float
    norm_affine: bool = True
    pre_norm: bool = True
    final_norm: bool = True
    qk_norm: bool = False
    qkv_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    gated: bool = True
    activation: str = "silu"
    rotary: RotarySpec | None = None
    position_offset: int | None = None
    attention_scales: tuple[float, ...]
    sliding_windows: tuple[int, ...]
    attention_soft_cap: float = 0.0
    logit_soft_cap: float = 0.0
    tied_embeddings: bool = False
    eos_token_ids: frozenset[int] = frozenset()

    @property
    def query_size(self) -> int:
        """Numbers in one token's queries, over all heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Numbers in one token's keys (or values) in one layer."""
        return self.num_kv_heads * self.head_dim
