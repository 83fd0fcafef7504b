"""The reference behind `interface.Kernels`: every operation in plain torch."""

from __future__ import annotations

from types import MappingProxyType

import torch

from paged_backend.kernels.cache_layout import CACHE_DTYPES
from paged_backend.kernels.interface import OPERATIONS, OperationChoice
from paged_backend.kernels.reference.copy_blocks import copy_blocks
from paged_backend.kernels.reference.embedding import embedding
from paged_backend.kernels.reference.experts import ReferenceExperts, experts, pack_experts
from paged_backend.kernels.reference.layer_norm import layer_norm
from paged_backend.kernels.reference.linear import ReferenceLinear, linear, pack_linear
from paged_backend.kernels.reference.paged_attention import paged_attention
from paged_backend.kernels.reference.qkv_to_cache import qkv_to_cache
from paged_backend.kernels.reference.rms_norm import rms_norm
from paged_backend.kernels.reference.sampling import sample
from paged_backend.kernels.reference.select_rows import select_rows
from paged_backend.kernels.reference.soft_cap import soft_cap
from paged_backend.kernels.reference.swap_blocks import swap_blocks
from paged_backend.kernels.tensor_kernels import TensorKernels
from paged_backend.kernels.tensor_operations import TensorOperations

REFERENCE_OPERATIONS = TensorOperations(
    linear_type=ReferenceLinear,
    pack_linear=pack_linear,
    linear=linear,
    experts_type=ReferenceExperts,
    pack_experts=pack_experts,
    experts=experts,
    embedding=embedding,
    rms_norm=rms_norm,
    layer_norm=layer_norm,
    qkv_to_cache=qkv_to_cache,
    paged_attention=paged_attention,
    select_rows=select_rows,
    soft_cap=soft_cap,
    copy_blocks=copy_blocks,
    swap_blocks=swap_blocks,
    sample=sample,
)


class ReferenceKernels(TensorKernels):
    """All operations in plain torch. Keeps no state.

    Attributes:
        dtype: what activations are held in.
        report: for each operation, "reference" and the reason given.
        cache_dtypes, token_major_keys: see `Kernels`; it reads and writes keys however they lie.
    """

    token_major_keys = False
    cache_dtypes = tuple(CACHE_DTYPES)

    def __init__(self, dtype: torch.dtype = torch.float32, reason: str = "The reference was asked for.") -> None:
        choice = OperationChoice("reference", reason)
        super().__init__(REFERENCE_OPERATIONS, dtype, MappingProxyType(dict.fromkeys(OPERATIONS, choice)))
