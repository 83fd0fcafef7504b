"""The parts of a decoder layer: plain data, called with the kernels that compute. Nothing here computes by itself."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from paged_backend.kernels.cache_layout import LayerCache
from paged_backend.kernels.interface import Collective, Kernels, LinearWeight, Rows, StepInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class RMSNorm:
    """Divides by the root mean square; weight float32 [H]."""

    weight: Tensor
    eps: float

    def __call__(self, kernels: Kernels, x: Rows) -> Rows:
        """The norm of each row."""
        return kernels.rms_norm(x, self.weight, self.eps)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNorm:
    """Normalises to mean 0 and variance 1; weight and bias float32 [H], or None."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def __call__(self, kernels: Kernels, x: Rows) -> Rows:
        """The norm of each row."""
        return kernels.layer_norm(x, self.weight, self.bias, self.eps)


Norm = RMSNorm | LayerNorm


@dataclass(frozen=True, slots=True, kw_only=True)
class RowParallelLinear:
    """A linear layer back to the hidden size, whose inputs may be divided among ranks.

    Attributes:
        weight: of this rank's inputs; its bias on the first rank alone.
        sum: adds up what the ranks make of theirs; None where one rank has all inputs.
        adds_residual: whether the residual comes in with this rank's part; true on the first rank alone.
    """

    weight: LinearWeight
    sum: Collective | None = None
    adds_residual: bool = True

    def __call__(self, kernels: Kernels, x: Rows, residual: Rows) -> Rows:
        """[T, inputs] to [T, hidden], plus the residual."""
        out = kernels.linear(x, self.weight, residual=residual if self.adds_residual else None)
        return out if self.sum is None else kernels.collective(out, self.sum)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Self-attention over the paged cache, of the heads that are here.

    Attributes:
        qkv: query, key and value as one linear layer, in that order.
        output: back to the hidden size.
        num_heads: query heads.
        query_norm, key_norm: over each head, float32 [D]; or None.
        norm_eps, scale, sliding_window, soft_cap: as in `Kernels.qkv_to_cache` and `Kernels.paged_attention`.
    """

    qkv: LinearWeight
    output: RowParallelLinear
    num_heads: int
    query_norm: Tensor | None
    key_norm: Tensor | None
    norm_eps: float
    scale: float
    sliding_window: int
    soft_cap: float

    def mixed(
        self,
        kernels: Kernels,
        x: Rows,
        inputs: StepInputs,
        cache: LayerCache,
        rotary: tuple[Tensor, Tensor] | None,
    ) -> Rows:
        """[T, hidden] to [T, heads * D]: all but the output layer. Writes the tokens' keys and values."""
        query = kernels.qkv_to_cache(
            kernels.linear(x, self.qkv),
            cache,
            inputs,
            num_heads=self.num_heads,
            rotary=rotary,
            query_norm=self.query_norm,
            key_norm=self.key_norm,
            norm_eps=self.norm_eps,
        )
        return kernels.paged_attention(
            query, cache, inputs, scale=self.scale, sliding_window=self.sliding_window, soft_cap=self.soft_cap
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedForward:
    """The part between attentions.

    Attributes:
        inner: gate and up as one gated linear layer; or up alone.
        outer: back to the hidden size.
    """

    inner: LinearWeight
    outer: RowParallelLinear
    activation: str

    def __call__(self, kernels: Kernels, x: Rows, residual: Rows) -> Rows:
        """[T, hidden] to [T, hidden], plus the residual."""
        wide = kernels.linear(x, self.inner, activation=self.activation)
        return self.outer(kernels, wide, residual)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderLayer:
    """Attention, then feed-forward, each with a norm and a residual sum.

    Attributes:
        pre_norm: norm before each part (x += part(norm(x))), or after its sum (x = norm(x + part(x))).
    """

    attention_norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: FeedForward
    pre_norm: bool

    def __call__(
        self,
        kernels: Kernels,
        hidden: Rows,
        inputs: StepInputs,
        cache: LayerCache,
        rotary: tuple[Tensor, Tensor] | None,
        *,
        is_last: bool,
    ) -> Rows:
        """[T, hidden] to [T, hidden]; the last layer, whose other rows nobody reads, to the rows of the logits."""
        x = self.attention_norm(kernels, hidden) if self.pre_norm else hidden
        mixed = self.attention.mixed(kernels, x, inputs, cache, rotary)
        if is_last:
            mixed, hidden = kernels.select_rows(mixed, inputs), kernels.select_rows(hidden, inputs)
        hidden = self.attention.output(kernels, mixed, hidden)
        if self.pre_norm:
            return self.mlp(kernels, self.mlp_norm(kernels, hidden), hidden)
        hidden = self.attention_norm(kernels, hidden)
        return self.mlp_norm(kernels, self.mlp(kernels, hidden, hidden))
