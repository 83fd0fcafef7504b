"""RMS norm and layer norm: a program normalises a row, which it holds in registers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import triton
import triton.language as tl
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.triton.aot import TRITON_TYPES, AotCase

NUM_WARPS = {512: 1, 1024: 2, 2048: 4, 4096: 8, 8192: 16, 32768: 32}
"""By the widest row that it is for: about 16 numbers in a thread."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `Kernels.rms_norm`. Rows of up to 32768 numbers."""
    return _normed(x, weight, None, eps, centred=False)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """See `Kernels.layer_norm`. Rows of up to 32768 numbers."""
    return _normed(x, weight, bias, eps, centred=True)


def _normed(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, *, centred: bool) -> Tensor:
    num_rows, width = x.shape
    out = torch.empty((num_rows, width), dtype=x.dtype, device=x.device)
    if x.numel() == 0:
        return out
    block, num_warps = _configuration(width)
    if x.stride(1) != 1:
        x = x.contiguous()
    norm_kernel[(num_rows,)](
        x,
        weight,
        bias,
        out,
        x.stride(0),
        eps,
        WIDTH=width,
        BLOCK=block,
        CENTRED=centred,
        num_warps=num_warps,
        enable_fp_fusion=True,
    )
    return out


def _configuration(width: int) -> tuple[int, int]:
    """The numbers that a program holds, and its warps."""
    block = triton.next_power_of_2(width)
    for widest, num_warps in NUM_WARPS.items():
        if block <= widest:
            return block, num_warps
    raise KernelError(f"x must have rows of at most {max(NUM_WARPS)} numbers, got a width of {width}.")


@triton.jit
def norm_kernel(
    x,
    weight,
    bias,
    out,
    x_stride,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    CENTRED: tl.constexpr,
):
    """One row: out [rows, WIDTH] = (x - mean) / sqrt(variance + eps) * weight + bias; the mean is 0 unless CENTRED."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    here = columns < WIDTH
    numbers = tl.load(x + row * x_stride + columns, mask=here, other=0.0).to(tl.float32)
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
    """Both norms in bfloat16 at the widths of real models; every configuration in the sweep."""
    widths = (768, 1024, 4096, 5120)
    sweep = (64, 512, 2048, 8192, 16384, 32768)
    for width in widths + sweep:
        for dtype in (torch.bfloat16, torch.float32):
            for centred in (False, True):
                block, num_warps = _configuration(width)
                rows, vector = f"*{TRITON_TYPES[dtype]}", "*fp32"
                signature = {"x": rows, "weight": vector, "out": rows, "x_stride": "i32:16", "eps": "fp32"}
                yield AotCase(
                    name=f"{'layer' if centred else 'rms'} {width} {TRITON_TYPES[dtype]}",
                    kernel=norm_kernel,
                    signature=signature | ({"bias": vector} if centred else {}),
                    constexprs={"WIDTH": width, "BLOCK": block, "CENTRED": centred}
                    | ({} if centred else {"bias": None}),
                    num_warps=num_warps,
                    wide=width in sweep or dtype is torch.float32,
                )
