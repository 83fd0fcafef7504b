"""Matrix products whose rows have the same bits whatever rows come with them.

The inputs are cut into a number of parts that depends on the weight's shape alone; each part is summed from 0 in the
order of its inputs, and the parts' sums are added in their order. Few rows have their parts summed by programs side by
side, which leaves no multiprocessor idle; many rows have them summed by one program, one after another. That is the
same arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from paged_backend.kernels.triton.aot import TRITON_TYPES, AotCase
from paged_backend.kernels.triton.finish import Unfinished
from paged_backend.kernels.triton.linear_weight import FLOAT32_BLOCK_K, Format, TritonLinear
from paged_backend.kernels.triton.products import finished, sum_products


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program computes, and with what.

    Attributes:
        block_n, block_t: rows of the weight, and of x.
        num_warps, num_stages: Triton's.
    """

    block_n: int
    block_t: int
    num_warps: int
    num_stages: int


_SMALL = (
    Tile(64, 16, num_warps=4, num_stages=5),
    Tile(64, 32, num_warps=4, num_stages=4),
    Tile(64, 64, num_warps=4, num_stages=4),
)
TILES: MappingProxyType[str, tuple[Tile, ...]] = MappingProxyType(
    {
        "float": (*_SMALL, Tile(128, 128, num_warps=8, num_stages=3)),
        "float32": (Tile(32, 16, num_warps=4, num_stages=2), Tile(32, 32, num_warps=4, num_stages=3)),
        "int8": (Tile(64, 16, num_warps=4, num_stages=8), *_SMALL[1:], Tile(128, 64, num_warps=4, num_stages=3)),
        "int4": (Tile(64, 16, num_warps=4, num_stages=6), *_SMALL[1:]),
        "fp8": (*_SMALL, Tile(128, 128, num_warps=8, num_stages=3)),
    }
)
"""By the format of the weight, or "float32" where x is float32, which the matrix unit does not multiply exactly. The
first tile is taken whose block_t holds all rows of x, or else the last one. For compute capability 8.0 and 9.0 alike:
all compile for both without spills."""

_PROGRAMS = 128
"""How many there should be, about the multiprocessors of a large card; constant, so that sums do not depend on it."""
_FULL = 128
"""From how many on parts are summed one after another: this may depend on the number of rows."""
_SMALLEST_PART = 256  # inputs: fewer would not fill the pipeline of loads
_SPLIT_COLUMNS = 64  # the narrowest tile's block_n
_GROUP_T = 16


def tile_for(weight: TritonLinear, dtype: torch.dtype, num_rows: int) -> Tile:
    """The tile for num_rows rows of x, which are of dtype."""
    tiles = _tiles(weight.format, dtype, weight.group_size)
    return next((tile for tile in tiles if num_rows <= tile.block_t), tiles[-1])


def _tiles(format: Format, dtype: torch.dtype, group_size: int) -> tuple[Tile, ...]:
    """The largest of int8 has no registers left for scales of groups."""
    tiles = TILES["float32" if dtype == torch.float32 else format]
    return tiles[:-1] if format == "int8" and group_size and dtype != torch.float32 else tiles


def num_parts(weight: TritonLinear) -> int:
    """Parts that the inputs are cut into."""
    programs = triton.cdiv(weight.num_rows, _SPLIT_COLUMNS)
    parts = 1
    while parts * programs < _PROGRAMS and weight.num_inputs >= 2 * parts * _SMALLEST_PART:
        parts *= 2
    return parts


def matmul(
    x: Tensor,
    weight: TritonLinear,
    activation: str | None,
    residual: Tensor | None,
    dtype: torch.dtype,
    row_scales: Tensor | None = None,
) -> Tensor | Unfinished:
    """See `Kernels.linear`. Parts that are summed side by side are left to be added up.

    Args:
        x: [T, K], stride 1 in K, at least one row. For a weight of "fp8" in float8_e4m3fn too, as wide as its numbers.
        residual: [T, N], stride 1 in N, or None.
        dtype: of the result.
        row_scales: float32 [T], what the rows of x are multiplied with; None for 1.
    """
    (num_rows, num_inputs), num_columns = x.shape, weight.num_rows
    tile = tile_for(weight, x.dtype, num_rows)
    num_tiles = triton.cdiv(num_columns, tile.block_n) * triton.cdiv(num_rows, tile.block_t)
    parts = num_parts(weight)
    part_size = triton.cdiv(triton.cdiv(num_inputs, weight.block_k), parts) * weight.block_k
    side_by_side = parts > 1 and num_tiles < _FULL
    if side_by_side:
        out = torch.empty(parts, num_rows, num_columns, device=x.device)
    else:
        out = torch.empty(num_rows, weight.num_outputs, dtype=dtype, device=x.device)
    by_row, by_group = (weight.scales, None) if weight.group_size == 0 else (None, weight.scales)
    matmul_kernel[(num_tiles, parts if side_by_side else 1)](
        x,
        weight.numbers,
        by_group,
        row_scales,
        by_row,
        weight.bias,
        residual,
        out,
        num_rows,
        num_columns,
        num_inputs,
        part_size,
        x.stride(0),
        weight.numbers.stride(0),
        0 if by_group is None else by_group.stride(0),
        0 if residual is None else residual.stride(0),
        out.stride(-2),
        FORMAT="float" if weight.format == "fp8" else weight.format,
        GROUP_SIZE=weight.group_size,
        EVEN=num_inputs % weight.block_k == 0,
        NUM_PARTS=parts,
        SIDE_BY_SIDE=side_by_side,
        GATED=weight.gated,
        ACTIVATION=activation,
        BLOCK_N=tile.block_n,
        BLOCK_T=tile.block_t,
        BLOCK_K=weight.block_k,
        GROUP_T=_GROUP_T,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        enable_fp_fusion=False,
    )
    if not side_by_side:
        return out
    return Unfinished(out, dtype, row_scales, by_row, weight.bias, weight.gated, activation, residual)


@triton.jit(do_not_specialize=["num_rows"])
def matmul_kernel(
    x,
    weight,
    scales,
    row_scales,
    column_scales,
    bias,
    residual,
    out,
    num_rows,
    num_columns,
    num_inputs,
    part_size,
    x_stride,
    weight_stride,
    scale_stride,
    residual_stride,
    out_stride,
    FORMAT: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    EVEN: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    SIDE_BY_SIDE: tl.constexpr,
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_T: tl.constexpr,
):
    """One tile of out; SIDE_BY_SIDE: of one part's sums, out being float32 [NUM_PARTS, num_rows, num_columns]."""
    # Programs that run at the same time share rows of the weight, and up to GROUP_T tiles of x.
    tiles_n = tl.cdiv(num_columns, BLOCK_N)
    tiles_t = tl.cdiv(num_rows, BLOCK_T)
    group_size = GROUP_T * tiles_n
    group = tl.program_id(0) // group_size
    tiles_of_group = tl.minimum(tiles_t - group * GROUP_T, GROUP_T)
    index = tl.program_id(0) % group_size
    first_row = (group * GROUP_T + index % tiles_of_group) * BLOCK_T
    first_column = (index // tiles_of_group) * BLOCK_N
    rows = first_row + tl.arange(0, BLOCK_T)
    columns = first_column + tl.arange(0, BLOCK_N)
    # Past the end the last one is computed again, and not stored.
    x_rows = x + tl.minimum(rows, num_rows - 1).to(tl.int64) * x_stride
    last_columns = tl.minimum(columns, num_columns - 1)
    weight_rows = weight + last_columns.to(tl.int64) * weight_stride
    scale_rows = weight_rows
    if GROUP_SIZE > 0:
        scale_rows = scales + last_columns

    if SIDE_BY_SIDE:
        begin = tl.program_id(1) * part_size
        sums = sum_products(
            x_rows, weight_rows, scale_rows, scale_stride, begin, tl.minimum(begin + part_size, num_inputs), num_inputs,
            FORMAT, GROUP_SIZE, EVEN, BLOCK_N, BLOCK_T, BLOCK_K,
        )  # fmt: skip
        mask = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
        wide_rows = tl.program_id(1).to(tl.int64) * num_rows + rows
        tl.store(out + wide_rows[:, None] * num_columns + columns[None, :], tl.trans(sums), mask=mask)
    else:
        sums = tl.zeros((BLOCK_N, BLOCK_T), dtype=tl.float32)
        for part in range(NUM_PARTS):
            begin = part * part_size
            sums += sum_products(
                x_rows, weight_rows, scale_rows, scale_stride, begin, tl.minimum(begin + part_size, num_inputs),
                num_inputs, FORMAT, GROUP_SIZE, EVEN, BLOCK_N, BLOCK_T, BLOCK_K,
            )  # fmt: skip
        finished(
            tl.trans(sums), rows, first_column, num_rows, num_columns, row_scales, column_scales, bias, residual,
            residual_stride, out, out_stride, GATED, ACTIVATION, BLOCK_T, BLOCK_N,
        )  # fmt: skip


_AOT_FORMATS: tuple[tuple[Format, int, int], ...] = (
    ("float", 64, 0),
    ("int8", 64, 0),
    ("int8", 64, 128),
    ("int4", 128, 64),
    ("fp8", 128, 0),
)
"""Format, block_k, group_size."""


def aot_cases() -> Iterable[AotCase]:
    """Each tile with each format. By default those that take the most registers: the largest, over parts, gated; and
    for other dtypes than bfloat16 the sweep has no others."""
    for format, block_k, group_size in _AOT_FORMATS:
        for dtype in (torch.bfloat16,) if format == "fp8" else (torch.float16, torch.bfloat16, torch.float32):
            tiles = _tiles(format, dtype, group_size)
            if format == "float" and dtype == torch.float32:
                block_k = FLOAT32_BLOCK_K
            often = dtype == torch.bfloat16 and group_size != 128
            for tile in tiles:
                yield _aot_case(dtype, format, block_k, group_size, tile, 4, False, True, often and tile is tiles[-1])
                if dtype == torch.bfloat16:
                    first = often and tile is tiles[0]
                    yield _aot_case(dtype, format, block_k, group_size, tile, 4, True, False, first)
                    yield _aot_case(dtype, format, block_k, group_size, tile, 1, False, False, False)


def _aot_case(
    dtype: torch.dtype,
    format: Format,
    block_k: int,
    group_size: int,
    tile: Tile,
    parts: int,
    side_by_side: bool,
    gated: bool,
    often: bool,
) -> AotCase:
    """A launch of `matmul` with a shape of even numbers."""
    own = f"*{TRITON_TYPES[dtype]}"
    x = "*fp8e4nv" if format == "fp8" else own
    types = {
        "x": x,
        "weight": x if format in ("float", "fp8") else "*i16" if format == "int4" else "*u8",
        "out": "*fp32" if side_by_side else own,
    }
    types |= {"num_rows": "i32", "bias": "*fp32"}
    types |= dict.fromkeys(("num_columns", "num_inputs", "part_size", "x_stride", "weight_stride"), "i32:16")
    types |= dict.fromkeys(("scale_stride", "residual_stride", "out_stride"), "i32:16")
    types |= {"scales": "*fp32"} if group_size else {} if format == "float" else {"column_scales": "*fp32"}
    types |= {"row_scales": "*fp32"} if format == "fp8" else {}
    types |= {} if gated else {"residual": own}
    pointers = ("scales", "row_scales", "column_scales", "residual")
    constants: dict[str, Any] = {name: None for name in pointers if name not in types}
    constants |= {
        "FORMAT": "float" if format == "fp8" else format,
        "GROUP_SIZE": group_size,
        "EVEN": True,
        "NUM_PARTS": parts,
        "SIDE_BY_SIDE": side_by_side,
        "GATED": gated,
        "ACTIVATION": "silu" if gated else None,
        "BLOCK_N": tile.block_n,
        "BLOCK_T": tile.block_t,
        "BLOCK_K": block_k,
        "GROUP_T": _GROUP_T,
    }
    shape = f"{tile.block_n}x{tile.block_t}x{block_k}"
    kind = "side by side" if side_by_side else f"{parts} parts{' gated' if gated else ''}"
    return AotCase(
        name=f"{format}/{group_size} {TRITON_TYPES[dtype]} {shape} {kind}",
        kernel=matmul_kernel,
        signature=types,
        constexprs=constants,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        fp_fusion=False,
        min_capability=89 if format == "fp8" else 80,
        wide=not often,
    )
