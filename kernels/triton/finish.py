"""What is left to do after a matrix product: adds the sums of its parts, scales, bias, activation, gate, residual."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from paged_backend.kernels.triton.aot import AotCase
from paged_backend.kernels.triton.products import finished

BLOCK_T, BLOCK_N = 4, 256
NUM_WARPS = 4


def finish(
    sums: Tensor,
    out: Tensor,
    row_scales: Tensor | None,
    column_scales: Tensor | None,
    bias: Tensor | None,
    gated: bool,
    activation: str | None,
    residual: Tensor | None,
) -> None:
    """out = activation(sums * scales + bias) + residual, or activation(gate) * up; see `products.finished`.

    Args:
        sums: float [parts, T, N], stride 1 in N, any stride between rows, parts one after another.
        out: [T, N], or [T, N / 2] of a gated layer, stride 1 in N. It may be sums' own memory, where it is as wide.
        row_scales, column_scales: float32 [T], [N]; or None.
        bias: float [N], or None.
        residual: [T, N], stride 1 in N, or None.
    """
    parts, num_rows, num_columns = sums.shape
    finish_kernel[(triton.cdiv(num_rows, BLOCK_T), triton.cdiv(num_columns, BLOCK_N))](
        sums,
        row_scales,
        column_scales,
        bias,
        residual,
        out,
        num_rows,
        num_columns,
        sums.stride(1),
        0 if residual is None else residual.stride(0),
        out.stride(0),
        NUM_PARTS=parts,
        GATED=gated,
        ACTIVATION=activation,
        BLOCK_T=BLOCK_T,
        BLOCK_N=BLOCK_N,
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )


@triton.jit(do_not_specialize=["num_rows"])
def finish_kernel(
    sums,
    row_scales,
    column_scales,
    bias,
    residual,
    out,
    num_rows,
    num_columns,
    sums_stride,
    residual_stride,
    out_stride,
    NUM_PARTS: tl.constexpr,
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A tile of sums [NUM_PARTS, num_rows, num_columns]: adds the parts in their order, then `finished`."""
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    first_column = tl.program_id(1) * BLOCK_N
    columns = first_column + tl.arange(0, BLOCK_N)
    mask = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
    pointers = sums + rows.to(tl.int64)[:, None] * sums_stride + columns[None, :]
    total = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32)
    for part in tl.static_range(NUM_PARTS):
        total += tl.load(pointers + tl.cast(part, tl.int64) * num_rows * sums_stride, mask=mask, other=0.0).to(
            tl.float32
        )
    finished(
        total, rows, first_column, num_rows, num_columns, row_scales, column_scales, bias, residual, residual_stride,
        out, out_stride, GATED, ACTIVATION, BLOCK_T, BLOCK_N,
    )  # fmt: skip


def aot_cases() -> Iterable[AotCase]:
    """After the library's product, with a gate and with a residual; after our own, over parts with scales."""
    for name, sums, parts, scales, gated in (
        ("bf16 gated", "bf16", 1, (), True),
        ("bf16 residual", "bf16", 1, (), False),
        ("bf16 parts", "fp32", 8, ("column_scales", "bias"), False),
        ("bf16 scaled gated", "fp32", 1, ("row_scales", "column_scales", "bias"), True),
    ):
        types = {"sums": f"*{sums}", "out": "*bf16", "num_rows": "i32"} | dict.fromkeys(scales, "*fp32")
        types |= dict.fromkeys(("num_columns", "sums_stride", "residual_stride", "out_stride"), "i32:16")
        types |= {} if gated else {"residual": "*bf16"}
        pointers = ("row_scales", "column_scales", "bias", "residual")
        constants: dict[str, Any] = {name: None for name in pointers if name not in types}
        constants |= {"NUM_PARTS": parts, "GATED": gated, "ACTIVATION": "silu" if gated else None}
        constants |= {"BLOCK_T": BLOCK_T, "BLOCK_N": BLOCK_N}
        yield AotCase(name=name, kernel=finish_kernel, signature=types, constexprs=constants, num_warps=NUM_WARPS)
