"""RMS norm and layer norm: a program normalises a row, which it holds in registers.

The row may be unfinished (`finish`): then the program first adds up its parts, scales, bias and residual, and writes
what comes of it beside the norm. That is the sum of a residual and its norm in one launch. Where the product before has
added the residual by itself, as cuBLAS does without another read of the product, there is nothing left to add.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import triton
import triton.language as tl
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.triton.aot import TRITON_TYPES, AotCase
from paged_backend.kernels.triton.finish import Unfinished

NUM_WARPS = {256: 1, 512: 2, 1024: 4, 2048: 8, 4096: 16, 32768: 32}
"""By the widest row that it is for: about 8 numbers in a thread, and never more than 32."""
WIDEST_UNFINISHED = 16384
"""Wider rows leave no registers to finish them in."""


def rms_norm(x: Tensor | Unfinished, weight: Tensor, eps: float) -> Tensor:
    """See `Kernels.rms_norm`. Rows of up to 32768 numbers; unfinished ones are then finished, too."""
    return _normed(x, weight, None, eps, centred=False)


def layer_norm(x: Tensor | Unfinished, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """See `Kernels.layer_norm`. Rows of up to 32768 numbers; unfinished ones are then finished, too."""
    return _normed(x, weight, bias, eps, centred=True)


def _normed(x: Tensor | Unfinished, weight: Tensor | None, bias: Tensor | None, eps: float, *, centred: bool) -> Tensor:
    if isinstance(x, Unfinished) and x.is_sum and x.width <= WIDEST_UNFINISHED:
        rows, total = x, x.room()
    else:
        rows, total = _as_it_is(x), None
    parts, num_rows, width = rows.sums.shape
    out = torch.empty((num_rows, width), dtype=rows.dtype, device=rows.sums.device)
    if out.numel() == 0:
        return out
    block, num_warps = _configuration(width)
    norm_kernel[(num_rows,)](
        rows.sums,
        rows.row_scales,
        rows.column_scales,
        rows.bias,
        rows.residual,
        total,
        weight,
        bias,
        out,
        num_rows,
        rows.sums.stride(1),
        0 if rows.residual is None else rows.residual.stride(0),
        0 if total is None else total.stride(0),
        eps,
        NUM_PARTS=parts,
        WIDTH=width,
        BLOCK=block,
        CENTRED=centred,
        num_warps=num_warps,
        enable_fp_fusion=False,
    )
    if total is not None:
        rows.result = total
    return out


def _as_it_is(x: Tensor | Unfinished) -> Unfinished:
    """Finished rows, as sums to which nothing is added."""
    rows = x.rows if isinstance(x, Unfinished) else x
    return Unfinished(rows[None] if rows.stride(1) == 1 else rows.contiguous()[None], rows.dtype)


def _configuration(width: int) -> tuple[int, int]:
    """The numbers that a program holds, and its warps."""
    block = triton.next_power_of_2(width)
    for widest, num_warps in NUM_WARPS.items():
        if block <= widest:
            return block, num_warps
    raise KernelError(f"x must have rows of at most {max(NUM_WARPS)} numbers, got a width of {width}.")


@triton.jit(do_not_specialize=["num_rows"])
def norm_kernel(
    sums,
    row_scales,
    column_scales,
    added,
    residual,
    total,
    weight,
    bias,
    out,
    num_rows,
    sums_stride,
    residual_stride,
    total_stride,
    eps,
    NUM_PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    CENTRED: tl.constexpr,
):
    """One row: out [rows, WIDTH] = (x - mean) / sqrt(variance + eps) * weight + bias; the mean is 0 unless CENTRED.

    x is total = sums * scales + added + residual, rounded to the dtype of total, which may be the residual's memory.
    The order is that of `finish.finish_kernel`, so that the bits are the same.
    """
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    here = columns < WIDTH
    numbers = tl.load(sums + row * sums_stride + columns, mask=here, other=0.0).to(tl.float32)
    for part in tl.static_range(1, NUM_PARTS):
        pointers = sums + (tl.cast(part, tl.int64) * num_rows + row) * sums_stride + columns
        numbers += tl.load(pointers, mask=here, other=0.0).to(tl.float32)
    if row_scales is not None:
        numbers *= tl.load(row_scales + row)
    if column_scales is not None:
        numbers *= tl.load(column_scales + columns, mask=here, other=0.0)
    if added is not None:
        numbers += tl.load(added + columns, mask=here, other=0.0).to(tl.float32)
    if residual is not None:
        numbers += tl.load(residual + row * residual_stride + columns, mask=here, other=0.0).to(tl.float32)
    if total is not None:
        rounded = numbers.to(total.dtype.element_ty)
        tl.store(total + row * total_stride + columns, rounded, mask=here)
        numbers = rounded.to(tl.float32)
    if CENTRED:
        numbers = tl.where(here, numbers - tl.sum(numbers, axis=0) * (1.0 / WIDTH), 0.0)
    variance = tl.sum(numbers * numbers, axis=0) * (1.0 / WIDTH)
    numbers = numbers * tl.rsqrt(variance + eps)
    if weight is not None:
        numbers = numbers * tl.load(weight + columns, mask=here, other=0.0)
    if bias is not None:
        numbers = numbers + tl.load(bias + columns, mask=here, other=0.0)
    tl.store(out + row * WIDTH + columns, numbers.to(out.dtype.element_ty), mask=here)


def aot_cases() -> Iterable[AotCase]:
    """Both norms in bfloat16 at widths of real models, and of unfinished rows; every configuration in the sweep."""
    often = [(768, False, 1), (1024, True, 4), (4096, False, 1), (5120, True, 8)]
    sweep = [(width, False, 1) for width in (64, 512, 2048, 8192, 16384, 32768)]
    sweep += [(width, True, 8) for width in (64, 512, 2048, 8192, WIDEST_UNFINISHED)]
    for width, unfinished, parts in often + sweep:
        for dtype in (torch.bfloat16, torch.float32):
            for centred in (False, True):
                yield _aot_case(width, unfinished, parts, dtype, centred, (width, unfinished, parts) in sweep)


def _aot_case(width: int, unfinished: bool, parts: int, dtype: torch.dtype, centred: bool, wide: bool) -> AotCase:
    block, num_warps = _configuration(width)
    rows = f"*{TRITON_TYPES[dtype]}"
    types = {"sums": "*fp32" if unfinished else rows, "weight": "*fp32", "out": rows, "num_rows": "i32", "eps": "fp32"}
    types |= dict.fromkeys(("sums_stride", "residual_stride", "total_stride"), "i32:16")
    types |= {"bias": "*fp32"} if centred else {}
    if unfinished:
        types |= {"row_scales": "*fp32", "column_scales": "*fp32", "added": "*fp32", "residual": rows, "total": rows}
    optional = ("row_scales", "column_scales", "added", "residual", "total", "bias")
    constants = {name: None for name in optional if name not in types}
    return AotCase(
        name=f"{'layer' if centred else 'rms'} {width} {rows[1:]}{f' of {parts} parts' if unfinished else ''}",
        kernel=norm_kernel,
        signature=types,
        constexprs=constants | {"NUM_PARTS": parts, "WIDTH": width, "BLOCK": block, "CENTRED": centred},
        num_warps=num_warps,
        fp_fusion=False,
        wide=wide or dtype is torch.float32,
    )
