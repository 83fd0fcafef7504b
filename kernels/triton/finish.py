"""What is left to do after a matrix product: adds the sums of its parts, scales, bias, activation, gate, residual."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from paged_backend.kernels.triton.aot import AotCase
from paged_backend.kernels.triton.products import finished

BLOCK_T, BLOCK_N = 4, 256
NUM_WARPS = 4


@dataclass(slots=True)
class Unfinished:
    """Rows whose sums are there, and nothing of what comes after: out = activation(sums * scales + bias) + residual, or
    activation(gate) * up, as `products.finished` has it. `rows` computes it; or a norm does, on its way (`norms`).

    Attributes:
        sums: float [parts, T, N], stride 1 in N, any stride between rows, parts one after another.
        dtype: of the result.
        row_scales, column_scales: float32 [T], [N]; or None.
        bias: float [N], or None.
        residual: [T, N] of dtype, stride 1 in N, or None.
        result: [T, N], or [T, N / 2] of a gated layer, once somebody has computed it.
    """

    sums: Tensor
    dtype: torch.dtype
    row_scales: Tensor | None = None
    column_scales: Tensor | None = None
    bias: Tensor | None = None
    gated: bool = False
    activation: str | None = None
    residual: Tensor | None = None
    result: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """The result. It may have the memory of the sums."""
        if self.result is None:
            self.result = _finish(self)
        return self.result

    @property
    def width(self) -> int:
        """Numbers in a row of the result."""
        return self.sums.shape[2] // 2 if self.gated else self.sums.shape[2]

    @property
    def is_sum(self) -> bool:
        """Whether nobody has finished it, and there is no activation to compute."""
        return self.result is None and not self.gated and self.activation is None

    def room(self) -> Tensor:
        """Memory for a result as wide as the sums: the residual's, which nobody else needs, or its own."""
        if self.residual is not None:
            return self.residual
        return self.sums.new_empty(self.sums.shape[1:], dtype=self.dtype)


def _finish(rows: Unfinished) -> Tensor:
    sums, residual = rows.sums, rows.residual
    parts, num_rows, num_columns = sums.shape
    if parts == 1 and sums.dtype == rows.dtype and not rows.gated:
        out = sums[0]
    else:
        out = sums.new_empty(num_rows, rows.width, dtype=rows.dtype)
    finish_kernel[(triton.cdiv(num_rows, BLOCK_T), triton.cdiv(num_columns, BLOCK_N))](
        sums,
        rows.row_scales,
        rows.column_scales,
        rows.bias,
        residual,
        out,
        num_rows,
        num_columns,
        sums.stride(1),
        0 if residual is None else residual.stride(0),
        out.stride(0),
        NUM_PARTS=parts,
        GATED=rows.gated,
        ACTIVATION=rows.activation,
        BLOCK_T=BLOCK_T,
        BLOCK_N=BLOCK_N,
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )
    return out


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
        yield AotCase(
            name=name, kernel=finish_kernel, signature=types, constexprs=constants, num_warps=NUM_WARPS, fp_fusion=False
        )
