"""The C++ kernels behind `interface.Kernels`.

Every operation is recorded into a program (`recorder`): a compiled step has all of its operations in one, an operation
that is called by itself has a program of its own. So there is one way into C++.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels import checks
from paged_backend.kernels.cache_layout import LayerCache
from paged_backend.kernels.cpu import _cpu
from paged_backend.kernels.cpu.experts import NO_EXPERTS, NoExperts
from paged_backend.kernels.cpu.linear import CpuLinear
from paged_backend.kernels.cpu.recorder import CPU_CACHE_DTYPES, CompiledStep, Recorder, check_memory, run
from paged_backend.kernels.cpu.sampling import sample
from paged_backend.kernels.cpu.segmented_step import SegmentedStep, inputs_of_rows
from paged_backend.kernels.cpu.segments import Buffer
from paged_backend.kernels.draws_at_once import DrawsAtOnce
from paged_backend.kernels.interface import (
    OPERATIONS,
    Collective,
    Kernels,
    LinearWeight,
    OperationChoice,
    Rows,
    StepInputs,
)
from paged_backend.kernels.quantized_weight import QuantizedWeight
from paged_backend.kernels.reference.swap_blocks import swap_blocks
from paged_backend.kernels.sampling_batch import SampledBatch, SamplingBatch
from paged_backend.kernels.tensors import check_tensor, describe


class CpuKernels(NoExperts, DrawsAtOnce):
    """Operations in C++ with threads of their own. Outside of a compiled step, rows are float32 tensors.

    A row's bits do not depend on the rows beside it, nor on the number of threads. Weights, tables and caches must be
    on the CPU. The threads do not survive a fork: a forked process computes on one.

    Attributes:
        num_threads: the caller's thread and its helpers.
        instruction_set: what it runs with: "avx512_vnni", "avx512", "avx2" or "portable".
        report: for each operation, "cpu" and the instruction set; "none" for experts.
        cache_dtypes, token_major_keys: see `Kernels`.
    """

    token_major_keys = False
    cache_dtypes = CPU_CACHE_DTYPES

    def __init__(self, num_threads: int, instruction_set: str = "auto") -> None:
        try:
            self._runtime = _cpu.Runtime(num_threads, instruction_set)
        except (ValueError, RuntimeError) as error:  # a wrong argument; or a system that gives fewer threads
            raise KernelError(str(error)) from None
        self.num_threads: int = self._runtime.num_threads
        self.instruction_set: str = self._runtime.instruction_set
        reason = f"C++ kernel ({self.instruction_set}): faster than the reference on the CPU."
        self.report: Mapping[str, OperationChoice] = MappingProxyType(
            dict.fromkeys(OPERATIONS, OperationChoice("cpu", reason)) | {"experts": NO_EXPERTS, "swap_blocks": _COPIES}
        )

    def pack_linear(
        self, weight: Tensor | QuantizedWeight, bias: Tensor | None = None, *, gated: bool = False
    ) -> CpuLinear:
        """See `Kernels.pack_linear`."""
        checks.check_pack_linear(weight, bias, gated)
        return CpuLinear(self._runtime, weight, bias, gated=gated)

    def linear(
        self, x: Rows, weight: LinearWeight, *, activation: str | None = None, residual: Rows | None = None
    ) -> Tensor:
        """See `Kernels.linear`."""
        return self._computed(
            lambda recorder, x, residual: recorder.linear(x, weight, activation=activation, residual=residual),
            {"x": x, "residual": residual},
        )

    def embedding(
        self, table: Tensor, indices: Literal["token_ids", "positions"], inputs: StepInputs, add: Rows | None = None
    ) -> Tensor:
        """See `Kernels.embedding`."""
        return self._computed(
            lambda recorder, add: recorder.embedding(table, indices, recorder.inputs, add), {"add": add}, inputs
        )

    def rms_norm(self, x: Rows, weight: Tensor, eps: float) -> Tensor:
        """See `Kernels.rms_norm`."""
        return self._computed(lambda recorder, x: recorder.rms_norm(x, weight, eps), {"x": x})

    def layer_norm(self, x: Rows, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        """See `Kernels.layer_norm`."""
        return self._computed(lambda recorder, x: recorder.layer_norm(x, weight, bias, eps), {"x": x})

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
        return self._computed(
            lambda recorder, qkv: recorder.qkv_to_cache(
                qkv,
                cache,
                recorder.inputs,
                num_heads=num_heads,
                rotary=rotary,
                query_norm=query_norm,
                key_norm=key_norm,
                norm_eps=norm_eps,
            ),
            {"qkv": qkv},
            inputs,
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
        """See `Kernels.paged_attention`. Head sizes up to 256."""
        return self._computed(
            lambda recorder, query: recorder.paged_attention(
                query,
                cache,
                recorder.inputs,
                scale=scale,
                sliding_window=sliding_window,
                soft_cap=soft_cap,
            ),
            {"query": query},
            inputs,
        )

    def select_rows(self, x: Rows, inputs: StepInputs) -> Tensor:
        """See `Kernels.select_rows`."""
        return self._computed(lambda recorder, x: recorder.select_rows(x, recorder.inputs), {"x": x}, inputs)

    def soft_cap(self, x: Rows, cap: float) -> Tensor:
        """See `Kernels.soft_cap`."""
        return self._computed(lambda recorder, x: recorder.soft_cap(x, cap), {"x": x})

    def collective(self, x: Rows, operation: Collective) -> Tensor:
        """See `Kernels.collective`."""
        return operation(_checked_rows("x", x))

    def copy_blocks(self, storage: Tensor, pairs: Tensor) -> None:
        """See `Kernels.copy_blocks`."""
        checks.check_copy_blocks(storage, pairs)
        pairs = pairs.contiguous()
        check_memory("storage", storage)
        check_memory("pairs", pairs)
        try:
            _cpu.copy_blocks(self._runtime, storage, pairs)
        except ValueError as error:
            raise KernelError(str(error)) from None

    def swap_blocks(self, storage: Tensor, slots: Tensor, pairs: Tensor, *, inwards: bool) -> None:
        """See `Kernels.swap_blocks`."""
        checks.check_swap_blocks(storage, slots, pairs, inwards)
        swap_blocks(storage, slots, pairs, inwards)

    def sample(self, logits: Tensor, batch: SamplingBatch) -> SampledBatch:
        """See `Kernels.sample`."""
        return sample(self._runtime, logits, batch)

    def compile(self, step: Callable[[Kernels, StepInputs], Rows]) -> CompiledStep | SegmentedStep:
        """See `Kernels.compile`. Calls the step once, to record it."""
        recorder = Recorder(self._runtime, self.report)
        logits: Buffer = step(recorder, recorder.inputs)
        if recorder.has_collectives:
            return SegmentedStep(recorder.finish_segments(logits), logits)
        return CompiledStep(recorder.finish([logits]), logits)

    def _computed(
        self,
        record: Callable[..., Buffer],
        rows: Mapping[str, object],
        inputs: StepInputs | None = None,
    ) -> Tensor:
        """Records one operation on rows, runs it, and gives its result."""
        is_given = {name: x is not None or name not in _OPTIONAL_ROWS for name, x in rows.items()}
        given = {name: _checked_rows(name, x) for name, x in rows.items() if is_given[name]}
        if inputs is None:
            inputs = inputs_of_rows(next(iter(given.values())).shape[0])
        checks.check_inputs(inputs)
        num_rows = inputs.token_ids.shape[0]
        for name, x in given.items():
            if x.shape[0] != num_rows:
                raise KernelError(f"{name} must have {num_rows} rows, got {describe(x)}.")
        recorder = Recorder(self._runtime, self.report)
        result = record(
            recorder, **{name: recorder.input(given[name].shape[1]) if name in given else None for name in rows}
        )
        program = recorder.finish([result])
        chosen = inputs.logits_rows if program.has_logits_rows(result.number) else None
        out = torch.empty(num_rows if chosen is None else chosen.shape[0], program.output_stride(0))
        run(program, inputs, list(given.values()), [out])
        return out[:, : result.width]


_COPIES = OperationChoice("cpu", "Copied by torch, as fast as memory is.")
_OPTIONAL_ROWS = ("residual", "add")


def _checked_rows(name: str, x: object) -> Tensor:
    if not isinstance(x, Tensor):
        raise KernelError(f"{name} must be float32 [T, width], got {type(x).__name__}.")
    check_tensor(name, x)
    if x.dtype != torch.float32 or x.dim() != 2 or not x.is_cpu:
        raise KernelError(f"{name} must be float32 [T, width] on the CPU, got {describe(x)} on {x.device}.")
    x = x.contiguous()
    check_memory(name, x)
    return x
