"""The one decoder. Families differ in the `Architecture` that it is given, not in code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from paged_backend.models.architecture import Architecture
from paged_backend.models.layers import DecoderLayer, Linear, Norm, StepInputs


@dataclass(slots=True, kw_only=True)
class Decoder:
    """A decoder-only transformer over a paged cache.

    Attributes:
        embedding: [vocab_size, embedding_size].
        positions: table of learned positions, its unused first rows cut off; or None.
        rotary: tables (cos, sin), float32 [positions, rotary dim]; or None.
        project_in, project_out: between embedding_size and hidden_size, where these differ.
        final_norm: after the last layer; or None.
        lm_head: hidden states to logits.
    """

    architecture: Architecture
    embedding: Tensor
    positions: Tensor | None
    rotary: tuple[Tensor, Tensor] | None
    project_in: Linear | None
    layers: Sequence[DecoderLayer]
    final_norm: Norm | None
    project_out: Linear | None
    lm_head: Linear

    def __call__(self, inputs: StepInputs, caches: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Computes a step and stores its keys and values.

        Args:
            caches: per layer, (keys, values), each float [B, Hkv, block_size, D]. Changed in place.

        Returns:
            Logits, float32 [R, vocab_size], of the rows that inputs.logits_rows names.
        """
        hidden = self._embed(inputs)
        rotary = None
        if self.rotary is not None:
            cos, sin = self.rotary
            rotary = cos.index_select(0, inputs.positions), sin.index_select(0, inputs.positions)
        if self.architecture.pre_norm:
            hidden = self._run_pre_norm(hidden, inputs, rotary, caches)
        else:
            hidden = self._run_post_norm(hidden, inputs, rotary, caches)
        return self._logits(hidden)

    def _embed(self, inputs: StepInputs) -> Tensor:
        hidden = functional.embedding(inputs.token_ids, self.embedding)
        if self.project_in is not None:
            hidden = self.project_in(hidden)
        if self.positions is not None:
            hidden = hidden + functional.embedding(inputs.positions, self.positions)
        return hidden

    def _run_pre_norm(
        self,
        hidden: Tensor,
        inputs: StepInputs,
        rotary: tuple[Tensor, Tensor] | None,
        caches: Sequence[tuple[Tensor, Tensor]],
    ) -> Tensor:
        """x += attention(norm(x)); x += mlp(norm(x)). Each sum is left to the norm that follows it."""
        residual: Tensor | None = None
        for layer, (keys, values) in zip(self.layers, caches, strict=True):
            hidden, residual = layer.attention_norm(hidden, residual)
            hidden = layer.attention(hidden, inputs, rotary, keys, values)
            hidden, residual = layer.mlp_norm(hidden, residual)
            hidden = layer.mlp(hidden)
        assert residual is not None
        if inputs.logits_rows is not None:
            hidden = hidden.index_select(0, inputs.logits_rows)
            residual = residual.index_select(0, inputs.logits_rows)
        if self.final_norm is None:
            return hidden + residual
        return self.final_norm(hidden, residual)[0]

    def _run_post_norm(
        self,
        hidden: Tensor,
        inputs: StepInputs,
        rotary: tuple[Tensor, Tensor] | None,
        caches: Sequence[tuple[Tensor, Tensor]],
    ) -> Tensor:
        """x = norm(x + attention(x)); x = norm(x + mlp(x))."""
        for layer, (keys, values) in zip(self.layers, caches, strict=True):
            hidden = layer.attention_norm(layer.attention(hidden, inputs, rotary, keys, values), hidden)[0]
            hidden = layer.mlp_norm(layer.mlp(hidden), hidden)[0]
        if inputs.logits_rows is not None:
            hidden = hidden.index_select(0, inputs.logits_rows)
        return hidden if self.final_norm is None else self.final_norm(hidden)[0]

    def _logits(self, hidden: Tensor) -> Tensor:
        if self.project_out is not None:
            hidden = self.project_out(hidden)
        logits = self.lm_head(hidden).float()
        cap = self.architecture.logit_soft_cap
        return logits if cap == 0.0 else torch.tanh(logits / cap) * cap
