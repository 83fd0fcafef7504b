"""A recorded step that has collectives: its programs one after the other, and the collectives between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paged_backend.kernels.cpu.recorder import check_step, run_unchecked
from paged_backend.kernels.cpu.segments import Buffer, Segment
from paged_backend.kernels.interface import StepInputs


class SegmentedStep:
    """Inputs to logits, like `recorder.CompiledStep`. One thread at a time."""

    def __init__(self, segments: Sequence[Segment], result: Buffer) -> None:
        self._segments = segments
        self._result = result

    def __call__(self, inputs: StepInputs) -> Tensor:
        """The logits of a step, float32 [R, width].

        Raises:
            KernelError: the inputs are not as `StepInputs` says, or an index is out of range.
        """
        check_step(inputs)
        num_tokens = inputs.token_ids.shape[0]
        num_selected = num_tokens if inputs.logits_rows is None else inputs.logits_rows.shape[0]
        values: dict[Buffer, Tensor] = {}
        for segment in self._segments:
            if segment.results:
                outputs = []
                for place, result in enumerate(segment.results):
                    num_rows = num_selected if result.is_selected else num_tokens
                    output = torch.empty(num_rows, segment.program.output_stride(place))
                    values[result] = output[:, : result.width]
                    outputs.append(output)
                step = inputs_of_rows(num_selected) if segment.is_selected else inputs
                run_unchecked(segment.program, step, [values[source] for source in segment.sources], outputs)
            if segment.operation is not None:
                assert segment.operand is not None and segment.outcome is not None
                values[segment.outcome] = segment.operation(values[segment.operand])
            for buffer in segment.done_with:
                del values[buffer]
        return values[self._result]


def inputs_of_rows(num_rows: int) -> StepInputs:
    """Inputs of a step that has rows, for operations that look at nothing else."""
    zeros = torch.zeros(num_rows, dtype=torch.int64)
    return StepInputs(
        token_ids=zeros,
        positions=zeros,
        slot_mapping=zeros,
        block_tables=torch.empty(0, 0, dtype=torch.int32),
        query_start=torch.zeros(1, dtype=torch.int32),
        context_lens=torch.empty(0, dtype=torch.int32),
        logits_rows=None,
    )
