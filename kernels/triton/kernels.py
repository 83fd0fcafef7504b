"""The Triton kernels behind `interface.Kernels`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

import torch

from paged_backend.kernels.cache_layout import CACHE_DTYPES
from paged_backend.kernels.interface import OPERATIONS, OperationChoice
from paged_backend.kernels.reference.kernels import REFERENCE_OPERATIONS
from paged_backend.kernels.tensor_kernels import TensorKernels
from paged_backend.kernels.tensor_operations import TensorOperations
from paged_backend.kernels.triton.target import check_target


class TritonKernels(TensorKernels):
    """Operations in Triton; those that have no kernel there are computed in plain torch on the same device.

    A row's bits do not depend on the rows beside it.

    Attributes:
        device: where all tensors are.
        dtype: what activations are held in.
        report: for each operation, "triton", or "reference" where plain torch computes it.
        cache_dtypes, token_major_keys: see `Kernels`; a cache is held in what the activations are, if nobody asks.
    """

    token_major_keys = True

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        """
        Raises:
            ConfigError: the device cannot run the kernels.
        """
        how = check_target(device)
        own = str(dtype).removeprefix("torch.")
        self.device = device
        self.cache_dtypes = (own, *(name for name in CACHE_DTYPES if name != own))
        super().__init__(TRITON_OPERATIONS, dtype, _report(TRITON_OPERATIONS, how))


TRITON_OPERATIONS = dataclasses.replace(REFERENCE_OPERATIONS)
"""One line for each operation that has a kernel."""


def _report(operations: TensorOperations, how: str) -> Mapping[str, OperationChoice]:
    ours = OperationChoice("triton", f"Triton kernel ({how}).")
    torchs = OperationChoice("reference", "It has no Triton kernel: plain torch on the same device.")
    return MappingProxyType(
        {
            name: torchs if getattr(operations, name) is getattr(REFERENCE_OPERATIONS, name) else ours
            for name in OPERATIONS
        }
    )
