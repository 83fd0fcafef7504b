"""Rows by their indices: the embedding, and the choice of rows whose logits are wanted."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import triton
import triton.language as tl
from torch import Tensor

from paged_backend.kernels.triton.aot import TRITON_TYPES, AotCase

BLOCK = 1024
NUM_WARPS = 4


def embedding(table: Tensor, indices: Tensor, add: Tensor | None, dtype: torch.dtype) -> Tensor:
    """See `Kernels.embedding`. An index outside the table, which only the CPU checks, gives a row of NaN."""
    return _gathered(table, indices, add, dtype)


def select_rows(x: Tensor, indices: Tensor) -> Tensor:
    """See `Kernels.select_rows`. An index outside x, which only the CPU checks, gives a row of NaN."""
    return _gathered(x if x.stride(1) == 1 else x.contiguous(), indices, None, x.dtype)


def _gathered(table: Tensor, indices: Tensor, add: Tensor | None, dtype: torch.dtype) -> Tensor:
    num_rows, width = len(indices), table.shape[1]
    out = torch.empty((num_rows, width), dtype=dtype, device=table.device)
    if out.numel() == 0:
        return out
    if add is not None and add.stride(1) != 1:
        add = add.contiguous()
    gather_kernel[(num_rows, triton.cdiv(width, BLOCK))](
        table,
        indices,
        add,
        out,
        len(table),
        width,
        table.stride(0),
        0 if add is None else add.stride(0),
        BLOCK=BLOCK,
        num_warps=NUM_WARPS,
        enable_fp_fusion=True,
    )
    return out


@triton.jit(do_not_specialize=["indices", "table_rows"])
def gather_kernel(table, indices, add, out, table_rows, width, table_stride, add_stride, BLOCK: tl.constexpr):
    """BLOCK columns of a row: out [rows, width] = table[indices] + add."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = columns < width
    index = tl.load(indices + row)
    inside = columns < tl.where((index >= 0) & (index < table_rows), width, 0)
    numbers = tl.load(table + index * table_stride + columns, mask=inside, other=float("nan")).to(tl.float32)
    if add is not None:
        numbers += tl.load(add + row * add_stride + columns, mask=here, other=0.0).to(tl.float32)
    tl.store(out + row * width + columns, numbers.to(out.dtype.element_ty), mask=here)


def aot_cases() -> Iterable[AotCase]:
    """Token embedding, learned positions, and rows; the float32 engine's in the sweep."""
    for dtype in (torch.bfloat16, torch.float32):
        for with_add in (False, True):
            rows = f"*{TRITON_TYPES[dtype]}"
            signature = {"table": rows, "indices": "*i64", "out": rows, "table_rows": "i32"}
            signature |= dict.fromkeys(("width", "table_stride", "add_stride"), "i32:16")
            yield AotCase(
                name=f"{'sum' if with_add else 'gather'} {TRITON_TYPES[dtype]}",
                kernel=gather_kernel,
                signature=signature | ({"add": rows} if with_add else {}),
                constexprs={"BLOCK": BLOCK} | ({} if with_add else {"add": None}),
                num_warps=NUM_WARPS,
                wide=dtype is torch.float32,
            )
