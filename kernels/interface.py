"""What each operation takes, gives and changes. Every implementation and the reference follow this file.

Letters in shapes: T rows (tokens) of a step over all its sequences, S sequences of a step, Hq query heads,
Hkv key/value heads (Hq is a multiple of Hkv; query head h reads key/value head h // (Hq // Hkv)), D head
size, B blocks of the cache, bs tokens in a block, L layers, H hidden size, N outputs and K inputs of a linear
layer. Tensors are row-major contiguous unless said otherwise. "Float" is float32, bfloat16 or float16. Sums
and transcendental functions are computed in float32; results are rounded once, to the dtype of the activation
that came in.

Every operation raises `KernelError`, naming the argument, for a shape, dtype, layout or index that it does
not take.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Kernels(Protocol):
    """The operations of one device. Methods keep no state between calls and may be called from any one
    thread."""

    def write_kv(
        self, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """Stores the new tokens' keys and values in the paged cache.

        Changes key_cache and value_cache in place, at the given slots only; rounds to the cache's dtype.

        Args:
            key: float [T, Hkv, D]; any strides.
            value: float [T, Hkv, D]; any strides.
            key_cache: float [B, Hkv, bs, D]; the first dimension may have any stride.
            value_cache: like key_cache.
            slot_mapping: int64 [T]; slot = block * bs + offset in the block, each in 0 .. B * bs - 1, all
                different.
        """

    def paged_attention(
        self,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        block_tables: Tensor,
        query_start: Tensor,
        context_lens: Tensor,
        *,
        scale: float,
        sliding_window: int = 0,
        soft_cap: float = 0.0,
    ) -> Tensor:
        """Causal softmax attention of new tokens over each sequence's cached tokens, the new ones included.

        Row r of sequence s (rows query_start[s] .. query_start[s + 1] - 1, r counted from 0) stands at
        position p = context_lens[s] - num_rows + r and attends to positions j with j <= p, and j > p -
        sliding_window when a window is set: out = softmax_j(cap(scale * q . k_j)) . v_j, where cap(x) =
        soft_cap * tanh(x / soft_cap) when a soft cap is set (Gemma 2, arXiv:2408.00118, 2.2), else x. Paging
        as in arXiv:2309.06180, 4.1. Decode rows (one row of a sequence), chunks of prompts and whole prompts
        may be mixed freely.

        Args:
            query: float [T, Hq, D]; the last two dimensions contiguous. Its dtype may differ from the
                caches'.
            key_cache: float [B, Hkv, bs, D]; the first dimension may have any stride.
            value_cache: like key_cache.
            block_tables: int32 [S, max_blocks]; entry i holds the sequence's tokens from i * bs on. Entries past
                the context, and those that every row's window has left behind, may hold anything.
            query_start: int32 [S + 1], from 0 to T, not decreasing. A sequence may have no rows.
            context_lens: int32 [S], tokens of the sequence, the new rows included.
            scale: what the dot products are multiplied with, mostly D ** -0.5.
            sliding_window: tokens that a row sees, itself included; 0 means all.
            soft_cap: bound of the scaled scores; 0.0 means none.

        Returns:
            [T, Hq, D] in the query's dtype, contiguous.
        """
        ...

    def copy_blocks(self, cache: Tensor, pairs: Tensor) -> None:
        """Copies whole blocks of all layers, keys and values (copy on write). Changes cache in place.

        All sources are read before any destination is written, so a block may be both.

        Args:
            cache: float [L, 2, B, Hkv, bs, D].
            pairs: int64 [N, 2] of (source block, destination block); destinations all different.
        """

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Adds the residual, if any, then divides by the root mean square (arXiv:1910.07467, eq. 4).

        h = x + residual; out = h / sqrt(mean(h ** 2) + eps) * weight, over the last dimension.

        Args:
            x: float [..., H].
            weight: float [H].
            eps: added to the mean square.
            residual: like x, or None for 0.

        Returns:
            (out, h), both like x. h is x itself when residual is None.
        """
        ...

    def layer_norm(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        residual: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Adds the residual, if any, then normalises to mean 0 and variance 1 (arXiv:1607.06450, eq. 3).

        h = x + residual; out = (h - mean(h)) / sqrt(var(h) + eps) * weight + bias, over the last dimension.

        Args:
            x: float [..., H].
            weight: float [H], or None for 1.
            bias: float [H], or None for 0.
            eps: added to the (biased) variance.
            residual: like x, or None for 0.

        Returns:
            (out, h), both like x. h is x itself when residual is None.
        """
        ...

    def rotary(self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Turns the first D_rot numbers of each head by its token's position (arXiv:2104.09864, eq. 34).

        Pairs are (i, i + D_rot / 2), as in GPT-NeoX and the Hugging Face checkpoints ("rotate half"):
        out = x * cos + rotate_half(x) * sin with rotate_half(a, b) = (-b, a). Numbers past D_rot pass
        unchanged.

        Args:
            query: float [T, Hq, D]; any strides.
            key: float [T, Hkv, D]; any strides.
            cos: float32 [T, D_rot], D_rot even and at most D; both halves given (they are mostly equal).
            sin: like cos.

        Returns:
            (query, key) turned: new tensors of the same shapes and dtypes.
        """
        ...

    def activation(self, x: Tensor, name: str) -> Tensor:
        """Applies the named function (Hugging Face's names, see `reference.activation.ACTIVATIONS`) to each
        number.

        Args:
            x: float, any shape and strides.
            name: for example "silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu".

        Returns:
            A new tensor like x.
        """
        ...

    def gated_activation(self, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        """activation(gate) * up (gated linear units, arXiv:2002.05202, eq. 5), rounded once.

        Args:
            gate: float [..., H]; any strides.
            up: like gate.
            activation: a name as in `Kernels.activation`.

        Returns:
            A new tensor like gate.
        """
        ...

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x @ weight.T + bias.

        Args:
            x: float [..., K].
            weight: float [N, K].
            bias: float [N], or None.

        Returns:
            [..., N] in x's dtype.
        """
        ...


OPERATIONS: tuple[str, ...] = (
    "write_kv",
    "paged_attention",
    "copy_blocks",
    "rms_norm",
    "layer_norm",
    "rotary",
    "activation",
    "gated_activation",
    "linear",
)
"""The names of the operations, in the order of `Kernels`."""
