"""What the kernels are compiled as, so that a machine without a GPU can compile them for one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

TRITON_TYPES: Mapping[torch.dtype, str] = MappingProxyType(
    {
        torch.float32: "fp32",
        torch.bfloat16: "bf16",
        torch.float16: "fp16",
        torch.float8_e4m3fn: "fp8e4nv",
        torch.int8: "i8",
        torch.uint8: "u8",
        torch.int32: "i32",
        torch.int64: "i64",
    }
)
"""Triton's names of torch's dtypes; a pointer's has a * before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AotCase:
    """One kernel in one configuration, with the types of one launch.

    A kernel's file gives its cases out of the table that its launches take their configurations from.

    Attributes:
        name: of this case among the file's.
        kernel: the `@triton.jit` function.
        signature: type of each argument that is no constant, in any order: "*fp16" (of a tensor that begins at a
            multiple of 16 bytes, as torch's do), "i32", "i32:16" (a multiple of 16), "fp32". An argument that is None
            belongs to the constants.
        constexprs: the others' values.
        num_warps: of 32 threads, in a program.
        num_stages: of the software pipeline.
        fp_fusion: products and sums are rounded once, as Triton does by itself until 3.10; launches say it too.
        min_capability: what the card must have, as 10 * major + minor: 89 for fp8.
        wide: belongs to the sweep over everything, and is compiled in slow tests only.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int
    num_stages: int = 1
    fp_fusion: bool = True
    min_capability: int = 80
    wide: bool = False
