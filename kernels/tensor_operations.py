"""What an implementation whose rows are tensors brings: one function for each operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from paged_backend.kernels.cache_layout import LayerCache
from paged_backend.kernels.interface import ExpertWeights, LinearWeight, Rows, StepInputs
from paged_backend.kernels.quantized_weight import QuantizedWeight
from paged_backend.kernels.sampling_batch import SampledBatch, SamplingBatch


class TensorLinear(LinearWeight, Protocol):
    """A packed linear layer of such an implementation."""

    @property
    def gated(self) -> bool:
        """Whether the first half of the outputs are gates, the second ups."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        ...


class TensorExperts(ExpertWeights, Protocol):
    """A packed mixture of experts of such an implementation."""

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        ...


class QKVToCache(Protocol):
    """See `Kernels.qkv_to_cache`; positions and slots are the step's, the slots those of the cache's group."""

    def __call__(
        self,
        qkv: Tensor,
        cache: LayerCache,
        positions: Tensor,
        slots: Tensor,
        num_heads: int,
        rotary: tuple[Tensor, Tensor] | None,
        query_norm: Tensor | None,
        key_norm: Tensor | None,
        norm_eps: float,
        /,
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorOperations:
    """The functions that compute; `TensorKernels` has checked their arguments, and says what each is for.

    A function may refuse a shape that it cannot serve with a `KernelError` that names the argument. Rows come and go in
    the dtype of the activations.

    Attributes:
        linear_type: what pack_linear gives, for `linear` to know its own.
        pack_linear: (weight, bias, gated).
        linear: (x, weight, activation, residual).
        experts_type: what pack_experts gives.
        pack_experts: (inner, outer).
        experts: (x, router_logits, weights, num_experts_per_tok, norm_topk_prob, activation, residual).
        embedding: (table, indices int64 [T], add, dtype of the result).
        rms_norm: (x, weight, eps).
        layer_norm: (x, weight, bias, eps).
        qkv_to_cache: see `QKVToCache`.
        paged_attention: (query, cache, inputs, scale, sliding_window, soft_cap).
        select_rows: (x, indices int64 [R]).
        soft_cap: (x, cap).
        copy_blocks: (storage, pairs).
        swap_blocks: (storage, slots, pairs, inwards).
        sample: (logits, batch), unchecked.
    """

    linear_type: type[TensorLinear]
    pack_linear: Callable[[Tensor | QuantizedWeight, Tensor | None, bool], TensorLinear]
    linear: Callable[[Tensor, Any, str | None, Tensor | None], Rows]
    experts_type: type[TensorExperts]
    pack_experts: Callable[[Sequence[Tensor | QuantizedWeight], Sequence[Tensor | QuantizedWeight]], TensorExperts]
    experts: Callable[[Tensor, Tensor, Any, int, bool, str, Tensor | None], Rows]
    embedding: Callable[[Tensor, Tensor, Tensor | None, torch.dtype], Tensor]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    layer_norm: Callable[[Tensor, Tensor | None, Tensor | None, float], Tensor]
    qkv_to_cache: QKVToCache
    paged_attention: Callable[[Tensor, LayerCache, StepInputs, float, int, float], Tensor]
    select_rows: Callable[[Tensor, Tensor], Tensor]
    soft_cap: Callable[[Tensor, float], Tensor]
    copy_blocks: Callable[[Tensor, Tensor], None]
    swap_blocks: Callable[[Tensor, Tensor, Tensor, bool], None]
    sample: Callable[[Tensor, SamplingBatch], SampledBatch]
