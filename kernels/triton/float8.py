"""Rows of activations in float8, each with a scale of its own."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import triton
import triton.language as tl
from torch import Tensor

from paged_backend.kernels.triton.aot import AotCase
from paged_backend.kernels.triton.qkv_to_cache import rounded_to_e4m3

BLOCK_K = 2048
NUM_WARPS = 4
_LARGEST = tl.constexpr(448.0)


def to_float8(x: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Rounds each row to float8_e4m3fn times a scale, with which its largest number becomes 448.

    Args:
        x: float [T, K], stride 1 in K, at least one row.
        width: K or more: how wide the result is, with zeros at the end.

    Returns:
        (float8_e4m3fn [T, width], float32 [T]); for a row with what is no number, that scale is none.
    """
    num_rows, num_inputs = x.shape
    out = torch.empty(num_rows, width, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(num_rows, device=x.device)
    to_float8_kernel[(num_rows,)](
        x, out, scales, num_inputs, width, x.stride(0), BLOCK_K=BLOCK_K, num_warps=NUM_WARPS, enable_fp_fusion=False
    )
    return out, scales


@triton.jit
def to_float8_kernel(x, out, scales, num_inputs, width, x_stride, BLOCK_K: tl.constexpr):
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, BLOCK_K)
    x += row * x_stride
    largest = tl.zeros((BLOCK_K,), dtype=tl.float32)
    for first in range(0, num_inputs, BLOCK_K):
        numbers = tl.load(x + first + offsets, mask=first + offsets < num_inputs, other=0.0)
        largest = tl.maximum(largest, tl.abs(numbers.to(tl.float32)), propagate_nan=tl.PropagateNan.ALL)
    is_number = tl.min((largest == largest).to(tl.int32), axis=0) == 1
    scale = tl.where(is_number, tl.max(largest, axis=0) / _LARGEST, float("nan"))
    tl.store(scales + row, scale)
    divisor = tl.where(scale == 0.0, 1.0, scale)
    for first in range(0, width, BLOCK_K):
        numbers = tl.load(x + first + offsets, mask=first + offsets < num_inputs, other=0.0).to(tl.float32)
        rounded = rounded_to_e4m3(tl.clamp(numbers / divisor, -_LARGEST, _LARGEST))
        tl.store(out + row * width + first + offsets, rounded.to(out.dtype.element_ty), mask=first + offsets < width)


def aot_cases() -> Iterable[AotCase]:
    """For each dtype of activations."""
    for dtype in ("bf16", "fp16", "fp32"):
        yield AotCase(
            name=dtype,
            kernel=to_float8_kernel,
            signature={"x": f"*{dtype}", "out": "*fp8e4nv", "scales": "*fp32"}
            | dict.fromkeys(("num_inputs", "width", "x_stride"), "i32:16"),
            constexprs={"BLOCK_K": BLOCK_K},
            num_warps=NUM_WARPS,
            fp_fusion=False,
            min_capability=89,
            wide=dtype != "bf16",
        )
