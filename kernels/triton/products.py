"""What the linear kernels share: a tile of x @ weight.T over some of the inputs, and what becomes of finished sums.

Weights are the left operand of the matrix unit and rows of x the right one, so that the tile's side on x may be as
small as 16, and quantized weights go from registers into the matrix unit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from paged_backend.kernels.triton.activations import activate


@triton.jit
def _from_bytes(values, dtype: tl.constexpr):
    """uint8 values - 128, in a dtype that holds these numbers exactly.

    0x4B000000 is 2 ** 23 in float32, whose last bits count ones: so two quick steps make a float of an integer, where a
    conversion would be a slow one.
    """
    return ((values.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True) - 8388736.0).to(dtype)


@triton.jit
def _from_nibbles(values, dtype: tl.constexpr):
    """The last 4 bits of int16 values - 8. In 16 bits two of them are computed at once: 0x6400 is 1024 in float16,
    0x4300 is 128 in bfloat16."""
    nibbles = values & 15
    if dtype == tl.float16:
        return (nibbles | 0x6400).to(tl.float16, bitcast=True) - 1032.0
    elif dtype == tl.bfloat16:
        return (nibbles | 0x4300).to(tl.bfloat16, bitcast=True) - 136.0
    else:
        return (nibbles.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True) - 8388616.0


@triton.jit
def _dot(weight, x, sums):
    """sums + weight [BLOCK_N, K] @ x [BLOCK_T, K].T

    Of float8 Hopper's matrix unit cuts sums off after about 14 bits, as long as they stay in it: so those of K products
    leave it, and are added in float32. (For other numbers that says nothing.)
    """
    K: tl.constexpr = weight.shape[1]
    return tl.dot(weight, tl.trans(x), sums, input_precision="ieee", max_num_imprecise_acc=K, out_dtype=tl.float32)


@triton.jit
def _inputs(x_rows, first, num_inputs, EVEN: tl.constexpr, SIZE: tl.constexpr):
    """Inputs first .. first + SIZE - 1 of rows, 0 past the last one."""
    offsets = first + tl.arange(0, SIZE)
    if EVEN:
        return tl.load(x_rows[:, None] + offsets[None, :])
    else:
        return tl.load(x_rows[:, None] + offsets[None, :], mask=offsets[None, :] < num_inputs, other=0.0)


@triton.jit
def sum_products(
    x_rows,
    weight_rows,
    scale_rows,
    scale_stride,
    begin,
    end,
    num_inputs,
    FORMAT: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """weight @ x.T over the inputs begin .. end - 1, from 0 and in their order.

    Args:
        x_rows: pointers [BLOCK_T] to the first numbers of rows of x.
        weight_rows: pointers [BLOCK_N] to the first numbers of the weight's rows (or fours of numbers).
        scale_rows: pointers [BLOCK_N] to their scales of group 0, where GROUP_SIZE is positive.
        scale_stride: from one group's scale to the next one's.
        begin, end: begin is a multiple of BLOCK_K.
        num_inputs: K.
        FORMAT: "float" (the dtype of x), "int8", or "int4": four numbers in 16 bits, in the lowest ones the first
            quarter of each BLOCK_K inputs.
        GROUP_SIZE: inputs that share a scale, a multiple of BLOCK_K (int4: of BLOCK_K / 4); 0 leaves scales to
            `finished`.
        EVEN: K is a multiple of BLOCK_K. Where not, quantized weights are filled up to one with zeros.

    Returns:
        float32 [BLOCK_N, BLOCK_T].
    """
    dtype: tl.constexpr = x_rows.dtype.element_ty
    sums = tl.zeros((BLOCK_N, BLOCK_T), dtype=tl.float32)
    for first in range(begin, end, BLOCK_K):
        if FORMAT == "float":
            sums = _dot(
                _inputs(weight_rows, first, num_inputs, EVEN, BLOCK_K),
                _inputs(x_rows, first, num_inputs, EVEN, BLOCK_K),
                sums,
            )
        elif FORMAT == "int8":
            values = tl.load(weight_rows[:, None] + (first + tl.arange(0, BLOCK_K))[None, :])
            x = _inputs(x_rows, first, num_inputs, EVEN, BLOCK_K)
            sums = _with_scale(
                _from_bytes(values, dtype), x, sums, scale_rows, scale_stride, first, GROUP_SIZE, BLOCK_N, BLOCK_T
            )
        else:
            QUARTER: tl.constexpr = BLOCK_K // 4
            quads = tl.load(weight_rows[:, None] + (first // 4 + tl.arange(0, QUARTER))[None, :])
            part = tl.zeros((BLOCK_N, BLOCK_T), dtype=tl.float32)
            for quarter in tl.static_range(4):
                here = first + quarter * QUARTER
                x = _inputs(x_rows, here, num_inputs, EVEN, QUARTER)
                weight = _from_nibbles(quads >> (4 * quarter), dtype)
                if GROUP_SIZE == 0:
                    sums = _dot(weight, x, sums)
                else:
                    part = _dot(weight, x, part)
                    # Where a group ends, or may: 32, 64 and 128 inputs are all that need be looked at.
                    if GROUP_SIZE % 64 != 0 or quarter == 3 or (GROUP_SIZE % 128 != 0 and quarter == 1):
                        scales = tl.load(scale_rows + (here // GROUP_SIZE) * scale_stride)
                        sums = tl.fma(part, scales[:, None], sums)
                        part = tl.zeros((BLOCK_N, BLOCK_T), dtype=tl.float32)
    return sums


@triton.jit
def _with_scale(
    weight,
    x,
    sums,
    scale_rows,
    scale_stride,
    first,
    GROUP_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Adds products of whole numbers, times the scale of their group. They are exact in the matrix unit; so the scale
    costs one rounding of their sum, not one of each weight."""
    if GROUP_SIZE == 0:
        sums = _dot(weight, x, sums)
    else:
        scales = tl.load(scale_rows + (first // GROUP_SIZE) * scale_stride)
        sums = tl.fma(_dot(weight, x, tl.zeros((BLOCK_N, BLOCK_T), dtype=tl.float32)), scales[:, None], sums)
    return sums


@triton.jit
def finished(
    sums,
    rows,
    first_column,
    num_rows,
    num_columns,
    row_scales,
    column_scales,
    bias,
    residual,
    residual_stride,
    out,
    out_stride,
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SIZE_T: tl.constexpr,
    SIZE_N: tl.constexpr,
):
    """Stores activation(sums * scales + bias) + residual, or activation(gate) * up.

    Args:
        sums: float32 [SIZE_T, SIZE_N].
        rows: int32 [SIZE_T], where in out and residual; those from num_rows on are left out.
        first_column: of num_columns, the weight's rows. In a gated layer gate and up take turns, and it is even.
        row_scales, column_scales: float32 [num_rows], [num_columns], or None for 1.
        bias: float32 [num_columns], or None.
        residual: [num_rows, num_columns], or None.
    """
    columns = first_column + tl.arange(0, SIZE_N)
    here = columns < num_columns
    if row_scales is not None:
        sums *= tl.load(row_scales + rows, mask=rows < num_rows, other=0.0)[:, None]
    if column_scales is not None:
        sums *= tl.load(column_scales + columns, mask=here, other=0.0)[None, :]
    if bias is not None:
        sums += tl.load(bias + columns, mask=here, other=0.0).to(tl.float32)[None, :]
    if GATED:
        gate, up = tl.split(sums.reshape((SIZE_T, SIZE_N // 2, 2)))
        result = activate(gate, ACTIVATION) * up
        columns = first_column // 2 + tl.arange(0, SIZE_N // 2)
        here = columns < num_columns // 2
    else:
        result = activate(sums, ACTIVATION)
    mask = (rows < num_rows)[:, None] & here[None, :]
    wide_rows = rows.to(tl.int64)[:, None]
    if residual is not None:
        result += tl.load(residual + wide_rows * residual_stride + columns[None, :], mask=mask, other=0.0).to(
            tl.float32
        )
    tl.store(out + wide_rows * out_stride + columns[None, :], result.to(out.dtype.element_ty), mask=mask)
