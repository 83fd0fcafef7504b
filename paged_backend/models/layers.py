"""The parts of a decoder layer. They hold weights and call kernels; nothing here computes by itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paged_backend.kernels.interface import Kernels


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What one step computes, over the T tokens of its S sequences laid end to end.

    Attributes:
        token_ids: int64 [T].
        positions: int64 [T], each token's index in its sequence.
        slot_mapping: int64 [T], where its key and value go: block * block_size + offset.
        block_tables: int32 [S, max_blocks], padded with anything.
        query_start: int32 [S + 1]; sequence s has the tokens query_start[s] .. query_start[s + 1] - 1.
        context_lens: int32 [S], tokens of each sequence, those of this step included.
        logits_rows: int64 [R], the tokens whose logits are wanted, or None for all T of them.
    """

    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    block_tables: Tensor
    query_start: Tensor
    context_lens: Tensor
    logits_rows: Tensor | None


class Linear:
    """x @ weight.T + bias, with weight [outputs, inputs]."""

    __slots__ = ("_linear", "bias", "weight")

    def __init__(self, kernels: Kernels, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias
        self._linear = kernels.linear

    def __call__(self, x: Tensor) -> Tensor:
        """[T, inputs] to [T, outputs]."""
        return self._linear(x, self.weight, self.bias)


class RMSNorm:
    """Divides by the root mean square, after adding a residual."""

    __slots__ = ("_norm", "eps", "weight")

    def __init__(self, kernels: Kernels, weight: Tensor, eps: float) -> None:
        self.weight = weight
        self.eps = eps
        self._norm = kernels.rms_norm

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(norm of x + residual, x + residual)."""
        return self._norm(x, self.weight, self.eps, residual)


class LayerNorm:
    """Normalises to mean 0 and variance 1, after adding a residual."""

    __slots__ = ("_norm", "bias", "eps", "weight")

    def __init__(self, kernels: Kernels, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
        self.weight = weight
        self.bias = bias
        self.eps = eps
        self._norm = kernels.layer_norm

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(norm of x + residual, x + residual)."""
        return self._norm(x, self.weight, self.bias, self.eps, residual)


Norm = RMSNorm | LayerNorm


@dataclass(slots=True, kw_only=True)
class Attention:
    """Self-attention over the paged cache.

    Attributes:
        qkv: query, key and value as one linear layer, in that order.
        query_norm, key_norm: over each head, or None.
        heads: [query heads, key heads, value heads].
        scale, sliding_window, soft_cap: as in `Kernels.paged_attention`.
    """

    kernels: Kernels
    qkv: Linear
    output: Linear
    query_norm: RMSNorm | None
    key_norm: RMSNorm | None
    heads: list[int]
    head_dim: int
    scale: float
    sliding_window: int
    soft_cap: float

    def __call__(
        self,
        x: Tensor,
        inputs: StepInputs,
        rotary: tuple[Tensor, Tensor] | None,
        key_cache: Tensor,
        value_cache: Tensor,
    ) -> Tensor:
        """[T, hidden] to [T, hidden]. Writes the tokens' keys and values into this layer's cache.

        Args:
            rotary: cosines and sines of the tokens' positions, or None.
            key_cache: float [B, Hkv, block_size, D].
            value_cache: like key_cache.
        """
        num_tokens = x.shape[0]
        qkv = self.qkv(x).view(num_tokens, sum(self.heads), self.head_dim)
        query, key, value = torch.split_with_sizes(qkv, self.heads, dim=1)
        if self.query_norm is not None and self.key_norm is not None:
            query = self.query_norm(query.contiguous())[0]
            key = self.key_norm(key.contiguous())[0]
        if rotary is not None:
            query, key = self.kernels.rotary(query, key, *rotary)
        self.kernels.write_kv(key, value, key_cache, value_cache, inputs.slot_mapping)
        mixed = self.kernels.paged_attention(
            query,
            key_cache,
            value_cache,
            inputs.block_tables,
            inputs.query_start,
            inputs.context_lens,
            scale=self.scale,
            sliding_window=self.sliding_window,
            soft_cap=self.soft_cap,
        )
        return self.output(mixed.view(num_tokens, self.heads[0] * self.head_dim))


@dataclass(slots=True, kw_only=True)
class FeedForward:
    """The part between attentions.

    Attributes:
        inner: gate and up as one linear layer, in that order; or up alone.
    """

    kernels: Kernels
    inner: Linear
    outer: Linear
    activation: str
    gated: bool

    def __call__(self, x: Tensor) -> Tensor:
        """[T, hidden] to [T, hidden]."""
        wide = self.inner(x)
        if not self.gated:
            return self.outer(self.kernels.activation(wide, self.activation))
        gate, up = wide.chunk(2, dim=-1)
        return self.outer(self.kernels.gated_activation(gate, up, self.activation))


@dataclass(slots=True, kw_only=True)
class DecoderLayer:
    """Attention, then feed-forward, each with a norm and a residual sum."""

    attention_norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: FeedForward
