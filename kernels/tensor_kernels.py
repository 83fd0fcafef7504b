"""`interface.Kernels` for implementations whose rows are tensors: checks the arguments, then computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels import checks
from paged_backend.kernels.cache_layout import LayerCache
from paged_backend.kernels.draws_at_once import DrawsAtOnce
from paged_backend.kernels.interface import (
    Collective,
    ExpertWeights,
    Kernels,
    LinearWeight,
    OperationChoice,
    Rows,
    StepInputs,
)
from paged_backend.kernels.quantized_weight import QuantizedWeight
from paged_backend.kernels.sampling_batch import SampledBatch, SamplingBatch
from paged_backend.kernels.tensor_operations import TensorExperts, TensorLinear, TensorOperations
from paged_backend.kernels.tensors import check_tensor, describe


class TensorKernels(DrawsAtOnce):
    """Computes each operation as it is called, by the functions that it is given; rows are tensors.

    Attributes:
        dtype: what activations are held in.
        report: for each operation, what computes it and why.
        cache_dtypes, token_major_keys: see `Kernels`.
    """

    token_major_keys: bool
    cache_dtypes: Sequence[str]

    def __init__(self, operations: TensorOperations, dtype: torch.dtype, report: Mapping[str, OperationChoice]) -> None:
        assert dtype in checks.FLOAT_DTYPES
        self.dtype = dtype
        self.report = report
        self._operations = operations

    def pack_linear(
        self, weight: Tensor | QuantizedWeight, bias: Tensor | None = None, *, gated: bool = False
    ) -> TensorLinear:
        """See `Kernels.pack_linear`."""
        checks.check_pack_linear(weight, bias, gated)
        numbers = weight.values if isinstance(weight, QuantizedWeight) else weight
        checks.check_devices(("weight", numbers), ("bias", bias))
        return self._operations.pack_linear(weight, bias, gated)

    def linear(
        self, x: Rows, weight: LinearWeight, *, activation: str | None = None, residual: Rows | None = None
    ) -> Rows:
        """See `Kernels.linear`."""
        if not isinstance(weight, self._operations.linear_type):
            raise KernelError(f"weight must be of these kernels' pack_linear, got {type(weight).__name__}.")
        x = self._rows("x", x)
        checks.check_linear(x.shape[1], weight, weight.gated, activation, residual is not None)
        if residual is not None:
            residual = self._rows("residual", residual, x.shape[0], weight.num_outputs)
        if weight.device != x.device:
            raise KernelError(f"weight must be on the device of x, {x.device}, got {weight.device}.")
        checks.check_devices(("x", x), ("residual", residual))
        return self._operations.linear(x, weight, activation, residual)

    def pack_experts(
        self, inner: Sequence[Tensor | QuantizedWeight], outer: Sequence[Tensor | QuantizedWeight]
    ) -> TensorExperts:
        """See `Kernels.pack_experts`."""
        checks.check_pack_experts(inner, outer)
        return self._operations.pack_experts(inner, outer)

    def experts(
        self,
        x: Rows,
        router_logits: Rows,
        weights: ExpertWeights,
        *,
        num_experts_per_tok: int,
        norm_topk_prob: bool,
        activation: str,
        residual: Rows | None = None,
    ) -> Rows:
        """See `Kernels.experts`."""
        if not isinstance(weights, self._operations.experts_type):
            raise KernelError(f"weights must be of these kernels' pack_experts, got {type(weights).__name__}.")
        x = self._rows("x", x, None, weights.num_inputs)
        router_logits = self._rows("router_logits", router_logits, x.shape[0], weights.num_experts)
        checks.check_experts(weights, num_experts_per_tok, activation)
        if residual is not None:
            residual = self._rows("residual", residual, x.shape[0], weights.num_inputs)
        if weights.device != x.device:
            raise KernelError(f"weights must be on the device of x, {x.device}, got {weights.device}.")
        checks.check_devices(("x", x), ("router_logits", router_logits), ("residual", residual))
        return self._operations.experts(
            x, router_logits, weights, num_experts_per_tok, bool(norm_topk_prob), activation, residual
        )

    def embedding(
        self, table: Tensor, indices: Literal["token_ids", "positions"], inputs: StepInputs, add: Rows | None = None
    ) -> Tensor:
        """See `Kernels.embedding`."""
        checks.check_embedding(table, indices)
        self._check_inputs(inputs)
        rows = inputs.token_ids if indices == "token_ids" else inputs.positions
        checks.check_indices(indices, rows, table.shape[0])
        if add is not None:
            add = self._rows("add", add, rows.shape[0], table.shape[1])
        checks.check_devices(("table", table), (indices, rows), ("add", add))
        return self._operations.embedding(table, rows, add, self.dtype)

    def rms_norm(self, x: Rows, weight: Tensor, eps: float) -> Tensor:
        """See `Kernels.rms_norm`."""
        x = self._rows("x", x)
        checks.check_rms_norm(x.shape[1], weight, eps)
        checks.check_devices(("x", x), ("weight", weight))
        return self._operations.rms_norm(x, weight, float(eps))

    def layer_norm(self, x: Rows, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        """See `Kernels.layer_norm`."""
        x = self._rows("x", x)
        checks.check_layer_norm(x.shape[1], weight, bias, eps)
        checks.check_devices(("x", x), ("weight", weight), ("bias", bias))
        return self._operations.layer_norm(x, weight, bias, float(eps))

    def qkv_to_cache(
        self,
        qkv: Rows,
        cache: LayerCache,
        inputs: StepInputs,
        *,
        num_heads: int,
        rotary: tuple[Tensor, Tensor] | None = None,
        query_norm: Tensor | None = None,
        key_norm: Tensor | None = None,
        norm_eps: float = 0.0,
    ) -> Tensor:
        """See `Kernels.qkv_to_cache`."""
        self._check_inputs(inputs)
        qkv = self._rows("qkv", qkv, inputs.token_ids.shape[0])
        checks.check_qkv_to_cache(qkv.shape[1], cache, num_heads, rotary, query_norm, key_norm, norm_eps)
        cos, sin = rotary if rotary is not None else (None, None)
        checks.check_devices(
            ("qkv", qkv),
            ("keys", cache.keys),
            ("slot_mapping", inputs.slot_mapping),
            ("positions", inputs.positions),
            ("cos", cos),
            ("sin", sin),
            ("query_norm", query_norm),
            ("key_norm", key_norm),
        )
        slots = checks.group_part("slot_mapping", inputs.slot_mapping, cache, inputs.token_ids.shape[0])
        checks.check_indices("slot_mapping", slots, cache.num_blocks * cache.block_size)
        if rotary is not None:
            checks.check_indices("positions", inputs.positions, rotary[0].shape[0])
        return self._operations.qkv_to_cache(
            qkv, cache, inputs.positions, slots, num_heads, rotary, query_norm, key_norm, float(norm_eps)
        )

    def paged_attention(
        self,
        query: Rows,
        cache: LayerCache,
        inputs: StepInputs,
        *,
        scale: float,
        sliding_window: int = 0,
        soft_cap: float = 0.0,
    ) -> Tensor:
        """See `Kernels.paged_attention`."""
        self._check_inputs(inputs)
        query = self._rows("query", query, inputs.token_ids.shape[0])
        checks.check_paged_attention(query.shape[1], cache, scale, sliding_window, soft_cap)
        checks.check_devices(
            ("query", query),
            ("keys", cache.keys),
            ("block_tables", inputs.block_tables),
            ("query_start", inputs.query_start),
            ("context_lens", inputs.context_lens),
        )
        return self._operations.paged_attention(query, cache, inputs, float(scale), sliding_window, float(soft_cap))

    def select_rows(self, x: Rows, inputs: StepInputs) -> Tensor:
        """See `Kernels.select_rows`."""
        self._check_inputs(inputs)
        x = self._rows("x", x, inputs.token_ids.shape[0])
        if inputs.logits_rows is None:
            out: Tensor = x
            return out
        checks.check_devices(("x", x), ("logits_rows", inputs.logits_rows))
        checks.check_indices("logits_rows", inputs.logits_rows, x.shape[0])
        return self._operations.select_rows(x, inputs.logits_rows)

    def soft_cap(self, x: Rows, cap: float) -> Tensor:
        """See `Kernels.soft_cap`."""
        x = self._rows("x", x)
        checks.check_soft_cap(cap)
        return self._operations.soft_cap(x, float(cap))

    def collective(self, x: Rows, operation: Collective) -> Tensor:
        """See `Kernels.collective`."""
        return operation(self._rows("x", x))

    def copy_blocks(self, storage: Tensor, pairs: Tensor) -> None:
        """See `Kernels.copy_blocks`."""
        checks.check_copy_blocks(storage, pairs)
        self._operations.copy_blocks(storage, pairs)

    def swap_blocks(self, storage: Tensor, slots: Tensor, pairs: Tensor, *, inwards: bool) -> None:
        """See `Kernels.swap_blocks`."""
        checks.check_swap_blocks(storage, slots, pairs, inwards)
        self._operations.swap_blocks(storage, slots, pairs, inwards)

    def sample(self, logits: Tensor, batch: SamplingBatch) -> SampledBatch:
        """See `Kernels.sample`."""
        return self._operations.sample(logits, batch)

    def compile(self, step: Callable[[Kernels, StepInputs], Rows]) -> Callable[[StepInputs], Tensor]:
        """See `Kernels.compile`. Calls the step each time."""

        def run(inputs: StepInputs) -> Tensor:
            logits: Tensor = step(self, inputs)
            return logits.float()

        return run

    def _check_inputs(self, inputs: StepInputs) -> None:
        checks.check_inputs(inputs)

    def _rows(self, name: str, x: object, num_rows: int | None = None, width: int | None = None) -> Tensor:
        """Rows of this implementation, with the number of rows and the width that are given."""
        wanted = f"{str(self.dtype).removeprefix('torch.')} [{num_rows or 'T'}, {width or 'width'}]"
        if not isinstance(x, Tensor):
            raise KernelError(f"{name} must be {wanted}, got {type(x).__name__}.")
        check_tensor(name, x)
        if (
            x.dtype != self.dtype
            or x.dim() != 2
            or (num_rows is not None and x.shape[0] != num_rows)
            or (width is not None and x.shape[1] != width)
        ):
            raise KernelError(f"{name} must be {wanted}, got {describe(x)}.")
        return x
