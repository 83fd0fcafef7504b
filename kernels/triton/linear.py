"""`Kernels.linear` on a GPU: the library's products of float weights, our own ones of all others."""

from __future__ import annotations

import torch
from torch import Tensor

from paged_backend.kernels.triton.finish import finish
from paged_backend.kernels.triton.float8 import to_float8
from paged_backend.kernels.triton.linear_weight import TritonLinear
from paged_backend.kernels.triton.matmul import matmul


def linear(x: Tensor, weight: TritonLinear, activation: str | None, residual: Tensor | None) -> Tensor:
    """See `Kernels.linear`. Where the weight is batch_invariant, a row has the same bits whatever rows come with it."""
    x = _rows_together(x)
    if residual is not None:
        residual = _rows_together(residual)
    if len(x) == 0:
        return x.new_empty(0, weight.num_outputs)
    if weight.format == "fp8":
        return _float8_linear(x, weight, activation, residual)
    if weight.batch_invariant:
        return matmul(x, weight, activation, residual, x.dtype)
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


def _float8_linear(x: Tensor, weight: TritonLinear, activation: str | None, residual: Tensor | None) -> Tensor:
    """Rows of x are rounded to float8 too. Sums are multiplied with both scales afterwards, in float32."""
    narrow, row_scales = to_float8(x, weight.numbers.shape[1])
    if weight.batch_invariant:
        return matmul(narrow, weight, activation, residual, x.dtype, row_scales)
    one = torch.ones((), device=x.device)
    sums = torch._scaled_mm(narrow, weight.numbers.T, scale_a=one, scale_b=one, out_dtype=torch.float32)
    out = x.new_empty(len(x), weight.num_outputs)
    sums = sums[None, :, : weight.num_rows]
    finish(sums, out, row_scales, weight.scales, weight.bias, weight.gated, activation, residual)
    return out


def _rows_together(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()
