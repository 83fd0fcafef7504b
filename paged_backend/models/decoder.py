"""The one decoder. Families differ in the `Architecture` that it is made of, not in code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from paged_backend.kernels.cache_layout import LayerCache
from paged_backend.kernels.interface import Kernels, LinearWeight, Rows, StepInputs
from paged_backend.models.layers import DecoderLayer, Norm
from paged_backend.models.shard import WHOLE, Shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """A decoder-only transformer over a paged cache. Its linear layers are those of one implementation of the kernels.

    Attributes:
        embedding: float [vocab_size, embedding_size]; of several ranks, each one's tokens, and zeros below them.
        positions: table of learned positions, its unused first rows cut off; or None.
        rotary: tables (cos, sin), float32 [positions, rotary dim]; or None.
        project_in, project_out: between embedding_size and hidden_size, where these differ.
        final_norm: after the last layer; or None.
        lm_head: hidden states to logits.
        logit_soft_cap: bounds logits x to cap * tanh(x / cap); 0 means not at all.
        shard: which part of the model this is.
    """

    embedding: Tensor
    positions: Tensor | None
    rotary: tuple[Tensor, Tensor] | None
    project_in: LinearWeight | None
    layers: Sequence[DecoderLayer]
    final_norm: Norm | None
    project_out: LinearWeight | None
    lm_head: LinearWeight
    logit_soft_cap: float
    shard: Shard = WHOLE

    def __call__(self, kernels: Kernels, inputs: StepInputs, caches: Sequence[LayerCache]) -> Rows:
        """Computes a step, and stores its keys and values in the caches, one for each layer.

        Makes the same calls whatever the inputs are, so that they can be recorded (`Kernels.compile`).

        Args:
            inputs: their token_ids are `Shard.own_tokens`.

        Returns:
            Logits, [R, vocab_size], of the rows that inputs.logits_rows names; of several ranks, each one has all of
            them, with columns for no token at the end.
        """
        hidden = self._embed(kernels, inputs)
        last = self.layers[-1]
        for layer, cache in zip(self.layers, caches, strict=True):
            hidden = layer(kernels, hidden, inputs, cache, self.rotary, is_last=layer is last)
        if self.final_norm is not None:
            hidden = self.final_norm(kernels, hidden)
        if self.project_out is not None:
            hidden = kernels.linear(hidden, self.project_out)
        logits = kernels.linear(hidden, self.lm_head)
        if self.logit_soft_cap:
            logits = kernels.soft_cap(logits, self.logit_soft_cap)
        return logits if self.shard.join is None else kernels.collective(logits, self.shard.join)

    def _embed(self, kernels: Kernels, inputs: StepInputs) -> Rows:
        hidden = kernels.embedding(self.embedding, "token_ids", inputs)
        if self.shard.sum is not None:
            hidden = kernels.collective(hidden, self.shard.sum)
        if self.project_in is not None:
            hidden = kernels.linear(hidden, self.project_in)
        if self.positions is not None:
            hidden = kernels.embedding(self.positions, "positions", inputs, add=hidden)
        return hidden
