"""Records a step's operations into a C++ program, and runs it: one call a step instead of one for each operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels import checks
from paged_backend.kernels.cache_layout import LayerCache
from paged_backend.kernels.cpu import _cpu
from paged_backend.kernels.cpu.experts import NoExperts
from paged_backend.kernels.cpu.linear import CpuLinear
from paged_backend.kernels.cpu.segments import Buffer, Segment, mark_last_uses
from paged_backend.kernels.interface import Collective, Kernels, LinearWeight, OperationChoice, Rows, StepInputs
from paged_backend.kernels.quantized_weight import QuantizedWeight
from paged_backend.kernels.sampling_batch import LaunchedSamples, SampledBatch, SamplingBatch

CPU_CACHE_DTYPES = ("float32", "bfloat16", "float16", "int8")
"""What the C++ kernels read and write; there, the fastest conversion from fp8 is a table."""


class Recorder(NoExperts):
    """`Kernels` whose operations write themselves down. Rows are buffers; inputs are `inputs`, and hold no tokens.

    A buffer may be used by any number of operations: memory is used again only when nobody needs what is in it.

    Attributes:
        inputs: what stands for the step's inputs while it is recorded.
        report: how the operations will be computed.
        cache_dtypes, token_major_keys: see `Kernels`.
    """

    token_major_keys = False
    cache_dtypes = CPU_CACHE_DTYPES

    def __init__(self, runtime: _cpu.Runtime, report: Mapping[str, OperationChoice]) -> None:
        self.report = report
        self.inputs = _no_tokens()
        self._runtime = runtime
        self._segments = [Segment(self, _cpu.Program(runtime))]

    @property
    def has_collectives(self) -> bool:
        """Whether it takes several programs, with others' work between them."""
        return len(self._segments) > 1

    @property
    def _program(self) -> _cpu.Program:
        return self._segments[-1].program

    def input(self, width: int) -> Buffer:
        """Rows that are given at run time, one for each token."""
        return self._recorded(lambda: self._program.input(width))

    def finish(self, outputs: Sequence[Buffer]) -> _cpu.Program:
        """Ends the recording with what a run is to give; the recorder cannot be used any more."""
        assert not self.has_collectives, "a step of several programs"
        numbers = [self._number("the step's result", output) for output in outputs]
        _refuse_value_errors(lambda: self._program.finish(numbers))
        return self._program

    def finish_segments(self, result: Buffer) -> Sequence[Segment]:
        """Ends the recording of a step that has collectives."""
        self._check_buffer("the step's result", result)
        result.segment.need(result)
        for segment in self._segments:
            segment.program.finish([buffer.number for buffer in segment.results])
        mark_last_uses(self._segments, result)
        return self._segments

    def linear(
        self, x: Rows, weight: LinearWeight, *, activation: str | None = None, residual: Rows | None = None
    ) -> Buffer:
        """See `Kernels.linear`."""
        number = self._number("x", x)
        if not isinstance(weight, CpuLinear):
            raise KernelError(f"weight must be of these kernels' pack_linear, got {type(weight).__name__}.")
        if weight.runtime.instruction_set != self._runtime.instruction_set:
            raise KernelError(
                f"weight must be packed for {self._runtime.instruction_set}, got {weight.runtime.instruction_set}."
            )
        checks.check_linear(x.width, weight, weight.gated, activation, residual is not None)
        added = self._optional("residual", residual, weight.num_outputs)
        return self._recorded(lambda: self._program.linear(number, weight.packed, activation or "", added))

    def embedding(
        self, table: Tensor, indices: Literal["token_ids", "positions"], inputs: StepInputs, add: Rows | None = None
    ) -> Buffer:
        """See `Kernels.embedding`."""
        self._check_inputs(inputs)
        checks.check_embedding(table, indices)
        table = _numbers_of("table", table)
        added = self._optional("add", add, table.shape[1])
        return self._recorded(lambda: self._program.embedding(table, indices, added))

    def rms_norm(self, x: Rows, weight: Tensor, eps: float) -> Buffer:
        """See `Kernels.rms_norm`."""
        number = self._number("x", x)
        checks.check_rms_norm(x.width, weight, eps)
        weight = _numbers_of("weight", weight)
        return self._recorded(lambda: self._program.rms_norm(number, weight, eps))

    def layer_norm(self, x: Rows, weight: Tensor | None, bias: Tensor | None, eps: float) -> Buffer:
        """See `Kernels.layer_norm`."""
        number = self._number("x", x)
        checks.check_layer_norm(x.width, weight, bias, eps)
        weight, bias = _given("weight", weight), _given("bias", bias)
        return self._recorded(lambda: self._program.layer_norm(number, weight, bias, eps))

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
    ) -> Buffer:
        """See `Kernels.qkv_to_cache`."""
        self._check_inputs(inputs)
        number = self._number("qkv", qkv)
        checks.check_qkv_to_cache(qkv.width, cache, num_heads, rotary, query_norm, key_norm, norm_eps)
        cos, sin = rotary if rotary is not None else (None, None)
        cos, sin = _given("cos", cos), _given("sin", sin)
        query_norm, key_norm = _given("query_norm", query_norm), _given("key_norm", key_norm)
        layout = _cache_arguments(cache)
        return self._recorded(
            lambda: self._program.qkv_to_cache(
                number, *layout, num_heads, cos, sin, query_norm, key_norm, norm_eps, cache.group
            )
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
    ) -> Buffer:
        """See `Kernels.paged_attention`."""
        self._check_inputs(inputs)
        number = self._number("query", query)
        checks.check_paged_attention(query.width, cache, scale, sliding_window, soft_cap)
        layout = _cache_arguments(cache)
        return self._recorded(
            lambda: self._program.paged_attention(number, *layout, scale, sliding_window, soft_cap, cache.group)
        )

    def select_rows(self, x: Rows, inputs: StepInputs) -> Buffer:
        """See `Kernels.select_rows`."""
        self._check_inputs(inputs)
        number = self._number("x", x)
        return self._recorded(lambda: self._program.select_rows(number))

    def soft_cap(self, x: Rows, cap: float) -> Buffer:
        """See `Kernels.soft_cap`."""
        number = self._number("x", x)
        checks.check_soft_cap(cap)
        return self._recorded(lambda: self._program.soft_cap(number, cap))

    def collective(self, x: Rows, operation: Collective) -> Buffer:
        """See `Kernels.collective`. Ends a program; what comes after it is in another."""
        self._check_buffer("x", x)
        x.segment.need(x)
        segment = Segment(self, _cpu.Program(self._runtime), is_selected=x.is_selected)
        before = self._segments[-1]
        before.operation, before.operand = operation, x
        before.outcome = segment.enter(operation.num_outputs(x.width))
        self._segments.append(segment)
        return before.outcome

    def pack_linear(
        self, weight: Tensor | QuantizedWeight, bias: Tensor | None = None, *, gated: bool = False
    ) -> LinearWeight:
        """Cannot be recorded."""
        raise KernelError("pack_linear cannot be part of a compiled step: pack before.")

    def copy_blocks(self, storage: Tensor, pairs: Tensor) -> None:
        """Cannot be recorded."""
        raise KernelError("copy_blocks cannot be part of a compiled step: copy before.")

    def swap_blocks(self, storage: Tensor, slots: Tensor, pairs: Tensor, *, inwards: bool) -> None:
        """Cannot be recorded."""
        raise KernelError("swap_blocks cannot be part of a compiled step: swap before.")

    def sample(self, logits: Tensor, batch: SamplingBatch) -> SampledBatch:
        """Cannot be recorded."""
        raise KernelError("sample cannot be part of a compiled step: sample its result.")

    def launch_sample(self, logits: Tensor, batch: SamplingBatch) -> LaunchedSamples:
        """Cannot be recorded."""
        raise KernelError("launch_sample cannot be part of a compiled step: sample its result.")

    def warm_up(self, vocab_size: int) -> None:
        """Cannot be recorded."""
        raise KernelError("warm_up cannot be part of a compiled step.")

    def compile(self, step: Callable[[Kernels, StepInputs], Rows]) -> Callable[[StepInputs], Tensor]:
        """Cannot be recorded."""
        raise KernelError("compile cannot be part of a compiled step.")

    def _recorded(self, record: Callable[[], int]) -> Buffer:
        return self._buffer(_refuse_value_errors(record))

    def _buffer(self, number: int) -> Buffer:
        segment = self._segments[-1]
        is_selected = segment.is_selected or segment.program.has_logits_rows(number)
        return Buffer(segment, number, segment.program.width(number), is_selected)

    def _number(self, name: str, rows: object) -> int:
        """Of rows in the program that is being recorded."""
        buffer, segment = self._check_buffer(name, rows), self._segments[-1]
        if buffer.segment is segment:
            return buffer.number
        if buffer.is_selected != segment.is_selected:
            raise KernelError(f"{name} must have as many rows as what the collective before gave.")
        buffer.segment.need(buffer)
        return segment.given(buffer).number

    def _check_buffer(self, name: str, rows: object) -> Buffer:
        if not isinstance(rows, Buffer):
            raise KernelError(f"{name} must be the result of an operation of this step, got {type(rows).__name__}.")
        if rows.segment.owner is not self:
            raise KernelError(f"{name} must be the result of an operation of this step, got one of another step.")
        return rows

    def _optional(self, name: str, rows: object, width: int) -> int | None:
        if rows is None:
            return None
        number = self._number(name, rows)
        if self._program.width(number) != width:
            raise KernelError(f"{name} must be [T, {width}], got a width of {self._program.width(number)}.")
        return number

    def _check_inputs(self, inputs: StepInputs) -> None:
        if inputs is not self.inputs:
            raise KernelError("inputs must be those that the step was called with.")
        if self._segments[-1].is_selected:
            raise KernelError("inputs cannot be looked at after a collective of selected rows.")


class CompiledStep:
    """A recorded step: inputs to logits. One thread at a time.

    The logits are a view of memory that the next run writes again.
    """

    def __init__(self, program: _cpu.Program, result: Buffer) -> None:
        self._program = program
        self._width = result.width
        self._has_logits_rows = program.has_logits_rows(result.number)
        self._stride = program.output_stride(0)
        self._logits = torch.empty(0, self._stride)

    def __call__(self, inputs: StepInputs) -> Tensor:
        """The logits of a step, float32 [R, width], or [T, width] of a step that selects no rows.

        Raises:
            KernelError: the inputs are not as `StepInputs` says, or an index is out of range; nothing was written.
        """
        check_step(inputs)
        logits_rows = inputs.logits_rows if self._has_logits_rows else None
        num_rows = (inputs.token_ids if logits_rows is None else logits_rows).shape[0]
        if num_rows > self._logits.shape[0]:
            # A normal tensor, so that its views may be changed within inference mode and without.
            with torch.inference_mode(False):
                self._logits = torch.empty(max(num_rows, 2 * self._logits.shape[0]), self._stride)
        run_unchecked(self._program, inputs, [], [self._logits])
        return self._logits[:num_rows, : self._width]

    def start_timing(self) -> None:
        """From now on, adds up the time of each kind of operation; costs some 50 ns for each."""
        self._program.timed = True

    @property
    def seconds(self) -> dict[str, float]:
        """Time spent in each kind of operation since `start_timing`."""
        return self._program.seconds


def run(program: _cpu.Program, inputs: StepInputs, rows: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """Runs a finished program.

    Args:
        program: what `Recorder.finish` gave.
        inputs: the step's.
        rows: float32 [T, width], columns contiguous, for each of its inputs.
        outputs: float32, rows as many as the result has and apart as the program wants them.

    Raises:
        KernelError: the inputs are not as `StepInputs` says, or an index is out of range; nothing was written.
    """
    check_step(inputs)
    run_unchecked(program, inputs, rows, outputs)


def check_memory(name: str, tensor: Tensor) -> None:
    """Raises KernelError for a tensor that C++ cannot read."""
    if not tensor.is_cpu:
        raise KernelError(f"{name} must be on the device cpu, got {tensor.device}.")
    if tensor.data_ptr() % tensor.itemsize:
        raise KernelError(f"{name} must be aligned to its numbers' {tensor.itemsize} bytes.")


def check_step(inputs: StepInputs) -> None:
    """Raises KernelError for inputs that are not as `StepInputs` says, as far as can be told without a program."""
    checks.check_inputs(inputs)
    for name in _STEP_TENSORS:
        tensor = getattr(inputs, name)
        if tensor is not None:
            check_memory(name, tensor)


def run_unchecked(program: _cpu.Program, inputs: StepInputs, rows: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """`run` of inputs that were looked at."""
    logits_rows = inputs.logits_rows
    num_rows = inputs.token_ids.shape[0]
    _refuse_value_errors(
        lambda: program.run(
            num_rows,
            inputs.token_ids.data_ptr(),
            inputs.positions.data_ptr(),
            inputs.slot_mapping.data_ptr(),
            inputs.context_lens.shape[0],
            inputs.slot_mapping.shape[0] // max(num_rows, 1),
            inputs.block_tables.shape[1],
            inputs.block_tables.data_ptr(),
            inputs.query_start.data_ptr(),
            inputs.context_lens.data_ptr(),
            -1 if logits_rows is None else logits_rows.shape[0],
            0 if logits_rows is None else logits_rows.data_ptr(),
            [(x.data_ptr(), x.stride(0)) for x in rows],
            [(x.data_ptr(), x.stride(0)) for x in outputs],
        )
    )


_STEP_TENSORS = (
    "token_ids",
    "positions",
    "slot_mapping",
    "block_tables",
    "query_start",
    "context_lens",
    "logits_rows",
)


def _no_tokens() -> StepInputs:
    none = torch.empty(0, dtype=torch.int64)
    return StepInputs(
        token_ids=none,
        positions=none,
        slot_mapping=none,
        block_tables=torch.empty(0, 0, dtype=torch.int32),
        query_start=torch.zeros(1, dtype=torch.int32),
        context_lens=torch.empty(0, dtype=torch.int32),
        logits_rows=none,
    )


def _cache_arguments(cache: LayerCache) -> tuple[Tensor, Tensor, str, int, int, int]:
    check_memory("keys", cache.keys)
    if cache.token_major_keys:
        raise KernelError("token_major_keys must be false: the C++ kernels read turned keys alone.")
    return cache.keys, cache.values, cache.dtype, cache.num_kv_heads, cache.block_size, cache.head_size


def _numbers_of(name: str, tensor: Tensor) -> Tensor:
    """A weight or table without its history, which may not be given to other libraries."""
    check_memory(name, tensor)
    return tensor.detach()


def _given(name: str, tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else _numbers_of(name, tensor)


def _refuse_value_errors(call: Callable[[], Any]) -> Any:
    """The call's result; ValueError, which C++ raises for wrong arguments, becomes KernelError."""
    try:
        return call()
    except ValueError as error:
        raise KernelError(str(error)) from None
