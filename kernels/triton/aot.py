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
        maxnreg: registers that a thread may have; None for as many as the assembler likes.
        fp_fusion: products and sums are rounded once, as Triton does by itself until 3.10; launches say it too.
        min_capability: what the card must have, as 10 * major + minor: 89 for fp8.
        max_capability: the newest card that is launched with this configuration; None for all.
        wide: belongs to the sweep over everything, and is compiled in slow tests only.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int
    num_stages: int = 1
    fp_fusion: bool = True
    maxnreg: int | None = None
    min_capability: int = 80
    max_capability: int | None = None
    wide: bool = False

    def is_for(self, capability: int) -> bool:
        """Whether a card has what it needs, and is launched with this configuration."""
        return self.min_capability <= capability and (self.max_capability is None or capability <= self.max_capability)
