"""`Kernels.linear` on a GPU: the library's products of float weights, our own ones of all others."""

from __future__ import annotations

import torch
from torch import Tensor

from paged_backend.kernels.triton.finish import finish
from paged_backend.kernels.triton.linear_weight import TritonLinear
from paged_backend.kernels.triton.matmul import matmul


def linear(x: Tensor, weight: TritonLinear, activation: str | None, residual: Tensor | None) -> Tensor:
    """See `Kernels.linear`. Where the weight is batch_invariant, a row has the same bits whatever rows come with it."""
    x = _rows_together(x)
    if residual is not None:
        residual = _rows_together(residual)
    if weight.batch_invariant:
        return matmul(x, weight, activation, residual)
    return _library_linear(x, weight, activation, residual)


def _library_linear(x: Tensor, weight: TritonLinear, activation: str | None, residual: Tensor | None) -> Tensor:
    """Sums are rounded to the dtype of x before an activation."""
    turned = weight.numbers.T
    if weight.bias is not None:
        sums = torch.addmm(weight.bias, x, turned)
    elif residual is not None and activation is None:
        return torch.addmm(residual, x, turned)
    else:
        sums = torch.mm(x, turned)
    if activation is None and residual is None and not weight.gated:
        return sums
    out = sums.new_empty(len(x), weight.num_outputs) if weight.gated else sums
    finish(sums[None], out, None, None, None, weight.gated, activation, residual)
    return out


def _rows_together(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()
