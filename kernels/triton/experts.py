"""Mixtures of experts: one product for all experts, each over the tokens that were sent to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.quantized_weight import QuantizedWeight
from paged_backend.kernels.triton.aot import AotCase
from paged_backend.kernels.triton.finish import Unfinished
from paged_backend.kernels.triton.linear_weight import Format, TritonLinear, pack_linear
from paged_backend.kernels.triton.matmul import TILES, Tile, tile_for
from paged_backend.kernels.triton.products import finished, sum_products
from paged_backend.kernels.triton.routing import Routing, route


@dataclass(frozen=True, slots=True)
class Stack:
    """One layer of each expert, all of one shape and format.

    Attributes:
        numbers, scales: as a `TritonLinear` has them, stacked.
        layer: what else there is to say, of each of them.
    """

    numbers: Tensor
    scales: Tensor | None
    layer: TritonLinear


@dataclass(frozen=True, slots=True)
class TritonExperts:
    """The experts of a mixture, as `pack_experts` made them.

    Attributes:
        inner: hidden to 2 * intermediate, gated.
        outer: intermediate to hidden.
    """

    inner: Stack
    outer: Stack

    @property
    def num_experts(self) -> int:
        """See `ExpertWeights`."""
        return self.inner.numbers.shape[0]

    @property
    def num_inputs(self) -> int:
        """See `ExpertWeights`."""
        return self.inner.layer.num_inputs

    @property
    def num_bytes(self) -> int:
        """See `ExpertWeights`."""
        tensors = (self.inner.numbers, self.inner.scales, self.outer.numbers, self.outer.scales)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    @property
    def device(self) -> torch.device:
        """See `TensorExperts`."""
        return self.inner.numbers.device


def pack_experts(
    inner: Sequence[Tensor | QuantizedWeight],
    outer: Sequence[Tensor | QuantizedWeight],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> TritonExperts:
    """See `Kernels.pack_experts`; the other arguments as for `pack_linear`.

    Raises:
        KernelError: as `pack_linear`; or the weights are fp8.
    """

    def stack(weights: Sequence[Tensor | QuantizedWeight], gated: bool) -> Stack:
        layers = [
            pack_linear(weight, None, gated, device=device, dtype=dtype, batch_invariant=True) for weight in weights
        ]
        if layers[0].format == "fp8":
            raise KernelError("experts' weights are fp8, which has no kernel for experts: quantize them to int8.")
        scales = [layer.scales for layer in layers if layer.scales is not None]
        return Stack(
            torch.stack([layer.numbers for layer in layers]), torch.stack(scales) if scales else None, layers[0]
        )

    return TritonExperts(stack(inner, True), stack(outer, False))


def experts(
    x: Tensor,
    router_logits: Tensor,
    weights: TritonExperts,
    num_experts_per_tok: int,
    norm_topk_prob: bool,
    activation: str,
    residual: Tensor | None,
) -> Tensor:
    """See `Kernels.experts`. Each expert's part of the result is rounded to the dtype of x before they are added."""
    return expert_parts(x, router_logits, weights, num_experts_per_tok, norm_topk_prob, activation, residual).rows


def expert_parts(
    x: Tensor,
    router_logits: Tensor,
    weights: TritonExperts,
    num_experts_per_tok: int,
    norm_topk_prob: bool,
    activation: str,
    residual: Tensor | None,
) -> Unfinished:
    """`experts`, whose parts are left to be added up."""
    num_tokens = len(x)
    if num_tokens == 0:
        return Unfinished(x[None], x.dtype, result=torch.empty_like(x))
    num_pairs = num_tokens * num_experts_per_tok
    # For as many as each expert gets if all get equally many.
    tile = tile_for(weights.inner.layer, x.dtype, num_pairs // weights.num_experts)
    logits = router_logits if router_logits.stride(1) == 1 else router_logits.contiguous()
    routing = route(logits, num_experts_per_tok, norm_topk_prob, tile.block_t)
    rows = x if x.stride(1) == 1 else x.contiguous()
    wide = _product(rows, weights.inner, tile, routing, num_pairs, activation, None)
    parts = _product(wide, weights.outer, tile, routing, num_pairs, None, routing.weights)
    if residual is not None and residual.stride(1) != 1:
        residual = residual.contiguous()
    return Unfinished(parts.view(num_experts_per_tok, num_tokens, -1), x.dtype, residual=residual)


def _product(
    x: Tensor,
    stack: Stack,
    tile: Tile,
    routing: Routing,
    num_pairs: int,
    activation: str | None,
    row_scales: Tensor | None,
) -> Tensor:
    """[num_pairs, outputs]: each pair's row of x, pair number % rows of x, times its expert's weight."""
    layer = stack.layer
    out = torch.empty(num_pairs, layer.num_outputs, dtype=x.dtype, device=x.device)
    num_blocks = len(routing.block_experts)
    by_row, by_group = (stack.scales, None) if layer.group_size == 0 else (None, stack.scales)
    experts_kernel[(num_blocks * triton.cdiv(layer.num_rows, tile.block_n),)](
        x,
        stack.numbers,
        by_group,
        row_scales,
        by_row,
        out,
        routing.order,
        routing.block_experts,
        num_pairs,
        len(x),
        num_blocks,
        layer.num_rows,
        layer.num_inputs,
        x.stride(0),
        stack.numbers.stride(1),
        stack.numbers.stride(0),
        0 if by_group is None else by_group.stride(1),
        0 if by_group is None else by_group.stride(0),
        out.stride(0),
        FORMAT=layer.format,
        GROUP_SIZE=layer.group_size,
        EVEN=layer.num_inputs % layer.block_k == 0,
        GATED=layer.gated,
        ACTIVATION=activation,
        BLOCK_N=tile.block_n,
        BLOCK_T=tile.block_t,
        BLOCK_K=layer.block_k,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        enable_fp_fusion=False,
    )
    return out


@triton.jit(do_not_specialize=["num_pairs", "num_x_rows", "num_blocks"])
def experts_kernel(
    x,
    weight,
    scales,
    row_scales,
    column_scales,
    out,
    order,
    block_experts,
    num_pairs,
    num_x_rows,
    num_blocks,
    num_columns,
    num_inputs,
    x_stride,
    weight_stride,
    expert_stride,
    scale_stride,
    expert_scale_stride,
    out_stride,
    FORMAT: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    EVEN: tl.constexpr,
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One block of pairs, and BLOCK_N rows of its expert's weight."""
    block = tl.program_id(0) % num_blocks
    first_column = (tl.program_id(0) // num_blocks) * BLOCK_N
    expert = tl.load(block_experts + block).to(tl.int64)
    if expert >= 0:
        pairs = tl.load(order + block * BLOCK_T + tl.arange(0, BLOCK_T))
        columns = tl.minimum(first_column + tl.arange(0, BLOCK_N), num_columns - 1)
        # Where there is no pair the last one is computed again, and not stored.
        x_rows = x + (tl.minimum(pairs, num_pairs - 1) % num_x_rows).to(tl.int64) * x_stride
        weight_rows = weight + expert * expert_stride + columns.to(tl.int64) * weight_stride
        scale_rows = weight_rows
        if GROUP_SIZE > 0:
            scale_rows = scales + expert * expert_scale_stride + columns
        sums = sum_products(
            x_rows, weight_rows, scale_rows, scale_stride, 0, num_inputs, num_inputs,
            FORMAT, GROUP_SIZE, EVEN, BLOCK_N, BLOCK_T, BLOCK_K,
        )  # fmt: skip
        if column_scales is not None:
            column_scales += expert * num_columns
        finished(
            tl.trans(sums), pairs, first_column, num_pairs, num_columns, row_scales, column_scales, None, None, 0,
            out, out_stride, GATED, ACTIVATION, BLOCK_T, BLOCK_N,
        )  # fmt: skip


def aot_cases() -> Iterable[AotCase]:
    """Both products of a layer of Qwen3-30B-A3B's kind, in each format and tile."""
    formats: tuple[tuple[Format, int, int], ...] = (("float", 64, 0), ("int8", 64, 0), ("int4", 128, 64))
    for format, block_k, group_size in formats:
        for dtype in ("bf16", "fp16"):
            for tile in TILES[format]:
                for gated in (True, False):
                    often = dtype == "bf16" and tile is TILES[format][0 if gated else -1] and format != "int8"
                    yield _aot_case(format, block_k, group_size, dtype, tile, gated, often)


def _aot_case(
    format: Format, block_k: int, group_size: int, dtype: str, tile: Tile, gated: bool, often: bool
) -> AotCase:
    types = {
        "x": f"*{dtype}",
        "weight": f"*{dtype}" if format == "float" else "*i16" if format == "int4" else "*u8",
        "out": f"*{dtype}",
    }
    types |= dict.fromkeys(("order", "block_experts"), "*i32")
    types |= dict.fromkeys(("num_pairs", "num_x_rows", "num_blocks"), "i32")
    types |= dict.fromkeys(("num_columns", "num_inputs", "x_stride", "weight_stride", "expert_stride"), "i32:16")
    types |= dict.fromkeys(("scale_stride", "expert_scale_stride", "out_stride"), "i32:16")
    types |= {"scales": "*fp32"} if group_size else {} if format == "float" else {"column_scales": "*fp32"}
    types |= {} if gated else {"row_scales": "*fp32"}
    constants: dict[str, Any] = {name: None for name in ("scales", "row_scales", "column_scales") if name not in types}
    constants |= {"FORMAT": format, "GROUP_SIZE": group_size, "EVEN": True, "GATED": gated}
    constants |= {"ACTIVATION": "silu" if gated else None}
    constants |= {"BLOCK_N": tile.block_n, "BLOCK_T": tile.block_t, "BLOCK_K": block_k}
    return AotCase(
        name=f"{format} {dtype} {tile.block_n}x{tile.block_t}x{block_k}{' gated' if gated else ''}",
        kernel=experts_kernel,
        signature=types,
        constexprs=constants,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        fp_fusion=False,
        wide=not often,
    )
