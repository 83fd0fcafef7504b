"""A step of the Triton kernels: what is computed anew each time, or captured once into a CUDA graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels import checks
from paged_backend.kernels.interface import Kernels, OperationChoice, Rows, StepInputs
from paged_backend.kernels.tensor_kernels import TensorKernels
from paged_backend.kernels.tensor_operations import TensorOperations
from paged_backend.kernels.triton.experts import expert_parts
from paged_backend.kernels.triton.finish import Unfinished
from paged_backend.kernels.triton.linear import product
from paged_backend.kernels.triton.norms import layer_norm, rms_norm


class StepKernels(TensorKernels):
    """The kernels that a compiled step is called with: the same numbers with fewer launches, and checks.

    The inputs are checked once, and a linear layer and experts may give rows that are unfinished, for the norm that
    comes next to finish; whoever else wants them has them finished first.
    """

    def __init__(
        self,
        operations: TensorOperations,
        dtype: torch.dtype,
        report: Mapping[str, OperationChoice],
        cache_dtypes: Sequence[str],
    ) -> None:
        super().__init__(dataclasses.replace(operations, linear=product, experts=expert_parts), dtype, report)
        self.token_major_keys = True
        self.cache_dtypes = cache_dtypes
        self._inputs: StepInputs | None = None

    def run(self, step: Callable[[Kernels, StepInputs], Rows], inputs: StepInputs) -> Tensor:
        """The step's logits, float32."""
        checks.check_inputs(inputs)
        self._inputs = inputs
        try:
            return self._rows("the step's result", step(self, inputs)).float()
        finally:
            self._inputs = None

    def rms_norm(self, x: Rows, weight: Tensor, eps: float) -> Tensor:
        """See `Kernels.rms_norm`."""
        if not isinstance(x, Unfinished):
            return super().rms_norm(x, weight, eps)
        checks.check_rms_norm(x.width, weight, eps)
        checks.check_devices(("x", x.sums), ("weight", weight))
        return rms_norm(x, weight, float(eps))

    def layer_norm(self, x: Rows, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        """See `Kernels.layer_norm`."""
        if not isinstance(x, Unfinished):
            return super().layer_norm(x, weight, bias, eps)
        checks.check_layer_norm(x.width, weight, bias, eps)
        checks.check_devices(("x", x.sums), ("weight", weight), ("bias", bias))
        return layer_norm(x, weight, bias, float(eps))

    def _check_inputs(self, inputs: StepInputs) -> None:
        if inputs is not self._inputs:
            raise KernelError("inputs must be those that the step was called with.")

    def _rows(self, name: str, x: object, num_rows: int | None = None, width: int | None = None) -> Tensor:
        return super()._rows(name, x.rows if isinstance(x, Unfinished) else x, num_rows, width)
