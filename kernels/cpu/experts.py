"""That the C++ kernels have no mixture of experts, said where somebody wants one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.interface import ExpertWeights, OperationChoice, Rows
from paged_backend.kernels.quantized_weight import QuantizedWeight

NO_EXPERTS = OperationChoice("none", "C++ has no mixture of experts: kernel_backend reference or triton has.")


class NoExperts:
    """Refuses what `Kernels` says of experts, for implementations of everything else."""

    def pack_experts(
        self, inner: Sequence[Tensor | QuantizedWeight], outer: Sequence[Tensor | QuantizedWeight]
    ) -> NoReturn:
        """Raises KernelError; so nobody gets to `experts` with weights."""
        raise KernelError(f"inner and outer cannot be packed: {NO_EXPERTS.reason}")

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
    ) -> NoReturn:
        """Raises KernelError: the weights are another implementation's."""
        raise KernelError(f"weights must be of these kernels' pack_experts, got {type(weights).__name__}.")
