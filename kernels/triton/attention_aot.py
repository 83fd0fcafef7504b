"""What the attention kernels are compiled as: their launches, by the tables of `attention_config`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from paged_backend.kernels.cache_layout import CACHE_DTYPES, LARGEST_NUMBERS
from paged_backend.kernels.triton.aot import TRITON_TYPES, AotCase
from paged_backend.kernels.triton.attention_config import (
    HOPPER,
    SMALL_BLACKWELL,
    attention_config,
    padded_head_size,
)
from paged_backend.kernels.triton.decode_attention import (
    DECODE_HEADS,
    MERGE_UNROLLED,
    MERGE_WARPS,
    SPLIT_UNIT,
    decode_splits_kernel,
    merge_splits_kernel,
)
from paged_backend.kernels.triton.prefill_attention import prefill_kernel

_GENERATIONS = {"ampere": (80, HOPPER - 1), "hopper": (HOPPER, SMALL_BLACKWELL - 1)}
"""The capability from which on, and up to which, a table is used."""

_USUAL = {
    ("bf16-bfloat16-128", "ampere", False),
    ("bf16-bfloat16-128", "ampere", True),
    ("bf16-bfloat16-128", "hopper", False),
    ("bf16-bfloat16-128", "hopper", True),
    ("bf16-fp8_e4m3-128", "hopper", False),
    ("fp32-float32-64", "hopper", True),
}
"""Queries, caches and head sizes, cards, and batch-invariant or not, that every run of the tests compiles; the others
are the wide sweep."""


@dataclass(frozen=True, slots=True)
class _Variant:
    """What a kernel is compiled for besides. A window leaves one of a prefill's two loops, a cap takes registers."""

    name: str
    windowed: bool
    capped: bool
    block_size: int
    heads: int


_PLAIN = _Variant("", windowed=False, capped=False, block_size=16, heads=4)
_PREFILLS = (
    _PLAIN,
    _Variant("-windowed", windowed=True, capped=False, block_size=128, heads=1),
    _Variant("-capped", windowed=False, capped=True, block_size=32, heads=8),
    _Variant("-windowed-capped", windowed=True, capped=True, block_size=16, heads=7),
)
_DECODES = (_PLAIN, _PREFILLS[-1])


def aot_cases() -> Iterable[AotCase]:
    """Decode and prefill of every kind of queries and caches and every padded head size, for each generation of cards;
    and the merge. float16 is to the compiler what bfloat16 is, so one size of it will do. fp8 has no card here that
    has it and the older table; int8 takes its place."""
    for dtype, caches, head_sizes in (
        (torch.bfloat16, ("bfloat16", "int8", "fp8_e4m3"), (64, 80, 128, 256)),
        (torch.float16, ("float16", "int8"), (128,)),
        (torch.float32, ("float32", "bfloat16", "int8"), (64, 80, 128, 256)),
    ):
        for cache_dtype, head_size, generation in product(caches, head_sizes, _GENERATIONS):
            if (cache_dtype, generation) == ("fp8_e4m3", "ampere"):
                continue
            for batch_invariant in (False, True):
                kind = (dtype, cache_dtype, head_size, generation, batch_invariant)
                for variant in _DECODES:
                    yield _decode(*kind, variant)
                for variant in _DECODES if dtype == torch.float32 else _PREFILLS:
                    yield _prefill(*kind, variant)
    for head_size in (128, 256):
        yield _merge(head_size)


def _decode(
    dtype: torch.dtype, cache_dtype: str, head_size: int, generation: str, batch_invariant: bool, variant: _Variant
) -> AotCase:
    config, common = _common(dtype, cache_dtype, head_size, generation, batch_invariant, variant)
    signature = {"states": "*fp32", "split_outs": "*fp32", "num_programs": "i32", "max_splits": "i32"}
    constexprs = {"SPLIT_UNIT": SPLIT_UNIT, "HEADS": DECODE_HEADS}
    constexprs |= {"BLOCK_M": config.decode_rows, "BLOCK_N": config.decode_block_n}
    return AotCase(
        name=f"decode-{common.pop('name')}",
        kernel=decode_splits_kernel,
        signature=common.pop("signature") | signature,
        constexprs=common.pop("constexprs") | constexprs,
        num_warps=config.decode_warps,
        num_stages=config.decode_stages,
        maxnreg=config.decode_registers,
        **common,
    )


def _prefill(
    dtype: torch.dtype, cache_dtype: str, head_size: int, generation: str, batch_invariant: bool, variant: _Variant
) -> AotCase:
    config, common = _common(dtype, cache_dtype, head_size, generation, batch_invariant, variant)
    constexprs = {"SPLIT_UNIT": SPLIT_UNIT * batch_invariant, "HEADS": variant.heads}
    constexprs |= {"BLOCK_M": config.prefill_rows, "BLOCK_N": config.prefill_block_n}
    return AotCase(
        name=f"prefill-{common.pop('name')}",
        kernel=prefill_kernel,
        signature=common.pop("signature") | {"num_sequences": "i32"},
        constexprs=common.pop("constexprs") | constexprs,
        num_warps=config.prefill_warps,
        num_stages=config.prefill_stages,
        maxnreg=config.prefill_registers,
        **common,
    )


def _common(
    dtype: torch.dtype, cache_dtype: str, head_size: int, generation: str, batch_invariant: bool, variant: _Variant
) -> tuple[Any, dict[str, Any]]:
    """The configuration, and what decode and prefill have alike."""
    scaled = cache_dtype in LARGEST_NUMBERS
    oldest, newest = _GENERATIONS[generation]
    config = attention_config(
        dtype, cache_dtype, head_size, oldest, capped=variant.capped, batch_invariant=batch_invariant
    )
    kind = f"{TRITON_TYPES[dtype]}-{cache_dtype}-{head_size}"
    rows, numbers = f"*{TRITON_TYPES[dtype]}", f"*{TRITON_TYPES[CACHE_DTYPES[cache_dtype]]}"
    scales = ("key_scales", "value_scales")
    signature = {
        **dict.fromkeys(("query", "out"), rows),
        **dict.fromkeys(("keys", "values"), numbers),
        **dict.fromkeys(scales if scaled else (), "*fp32"),
        **dict.fromkeys(("block_tables", "query_start", "context_lens"), "*i32"),
        **dict.fromkeys(("query_stride", "block_stride"), "i32:16"),
        **dict.fromkeys(("table_stride", "scales_stride", "group_size", "num_kv_heads", "sliding_window"), "i32"),
        **dict.fromkeys(("score_scale", "exponent_scale", "soft_cap"), "fp32"),
    }
    constexprs: dict[str, Any] = {
        **dict.fromkeys(() if scaled else scales),
        "WINDOWED": variant.windowed,
        "CAPPED": variant.capped,
        "BLOCK_SIZE": variant.block_size,
        "HEAD_SIZE": head_size,
        "BLOCK_D": padded_head_size(head_size),
    }
    suffix = "-invariant" if batch_invariant else ""
    return config, {
        "name": f"{kind}-{generation}{suffix}{variant.name}",
        "signature": signature,
        "constexprs": constexprs,
        "fp_fusion": False,
        "min_capability": oldest,
        "max_capability": newest,
        "wide": variant is not _PLAIN or (kind, generation, batch_invariant) not in _USUAL,
    }


def _merge(head_size: int) -> AotCase:
    tensors = {"out": "*bf16", "states": "*fp32", "split_outs": "*fp32", "query_start": "*i32", "context_lens": "*i32"}
    numbers = dict.fromkeys(("group_size", "num_kv_heads", "max_splits", "sliding_window"), "i32")
    return AotCase(
        name=f"merge-{head_size}",
        kernel=merge_splits_kernel,
        signature=tensors | numbers | {"exponent_scale": "fp32"},
        constexprs={
            "SPLIT_UNIT": SPLIT_UNIT,
            "HEAD_SIZE": head_size,
            "HEADS": DECODE_HEADS,
            "BLOCK_D": padded_head_size(head_size),
            "UNROLLED": MERGE_UNROLLED,
        },
        num_warps=MERGE_WARPS,
        fp_fusion=False,
        wide=head_size != 128,
    )
