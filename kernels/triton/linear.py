"""`Kernels.linear` on a GPU: the library's products of float weights, our own ones of all others."""

from __future__ import annotations

import torch
from torch import Tensor

from paged_backend.kernels.triton.finish import Unfinished
from paged_backend.kernels.triton.float8 import to_float8
from paged_backend.kernels.triton.linear_weight import TritonLinear
from paged_backend.kernels.triton.matmul import matmul


def linear(x: Tensor, weight: TritonLinear, activation: str | None, residual: Tensor | None) -> Tensor:
    """See `Kernels.linear`. Where the weight is batch_invariant, a row has the same bits whatever rows come with it."""
    out = product(x, weight, activation, residual)
    return out.rows if isinstance(out, Unfinished) else out


def product(x: Tensor, weight: TritonLinear, activation: str | None, residual: Tensor | None) -> Tensor | Unfinished:
    """`linear`, or what becomes it once it is finished, by a launch more, or by a norm that comes next."""
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


def _library_linear(
    x: Tensor, weight: TritonLinear, activation: str | None, residual: Tensor | None
) -> Tensor | Unfinished:
    """Sums are rounded to the dtype of x before an activation."""
    turned = weight.numbers.T
    if weight.bias is not None:
        sums = torch.addmm(weight.bias, x, turned)
    elif residual is not None and activation is None:
        return torch.addmm(residual, x, turned, out=residual)  # else it would be copied first
    else:
        sums = torch.mm(x, turned)
    if activation is None and residual is None and not weight.gated:
        return sums
    return Unfinished(sums[None], x.dtype, gated=weight.gated, activation=activation, residual=residual)


def _float8_linear(
    x: Tensor, weight: TritonLinear, activation: str | None, residual: Tensor | None
) -> Tensor | Unfinished:
    """Rows of x are rounded to float8 too. Sums are multiplied with both scales afterwards, in float32."""
    narrow, row_scales = to_float8(x, weight.numbers.shape[1])
    if weight.batch_invariant:
        return matmul(narrow, weight, activation, residual, x.dtype, row_scales)
    one = torch.ones((), device=x.device)
    sums = torch._scaled_mm(narrow, weight.numbers.T, scale_a=one, scale_b=one, out_dtype=torch.float32)
    sums = sums[None, :, : weight.num_rows]
    return Unfinished(sums, x.dtype, row_scales, weight.scales, weight.bias, weight.gated, activation, residual)


def _rows_together(x: Tensor) -> Tensor:
    """Rows that lie one after another, each in one piece."""
    return x if x.stride(1) == 1 and (len(x) == 1 or x.stride(0) >= x.shape[1]) else x.contiguous()
