"""The bound of logits."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import triton
import triton.language as tl
from torch import Tensor

from paged_backend.kernels.triton.activations import tanh
from paged_backend.kernels.triton.aot import TRITON_TYPES, AotCase

BLOCK = 2048
NUM_WARPS = 4


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """See `Kernels.soft_cap`. Takes the memory of x."""
    x = x.contiguous()
    if x.numel():
        soft_cap_kernel[(triton.cdiv(x.numel(), BLOCK),)](
            x, cap, x.numel(), BLOCK=BLOCK, num_warps=NUM_WARPS, enable_fp_fusion=True
        )
    return x


@triton.jit(do_not_specialize=["cap", "size"])
def soft_cap_kernel(x, cap, size: tl.int64, BLOCK: tl.constexpr):
    """BLOCK numbers of x [size], in place."""
    indices = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    numbers = tl.load(x + indices, mask=indices < size, other=0.0).to(tl.float32)
    tl.store(x + indices, (cap * tanh(numbers / cap)).to(x.dtype.element_ty), mask=indices < size)


def aot_cases() -> Iterable[AotCase]:
    """In both dtypes that logits are in."""
    for dtype in (torch.bfloat16, torch.float32):
        yield AotCase(
            name=TRITON_TYPES[dtype],
            kernel=soft_cap_kernel,
            signature={"x": f"*{TRITON_TYPES[dtype]}", "cap": "fp32", "size": "i64"},
            constexprs={"BLOCK": BLOCK},
            num_warps=NUM_WARPS,
            wide=dtype is torch.float32,
        )
