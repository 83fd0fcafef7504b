"""What sampling's kernels are compiled as ahead of time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from paged_backend.kernels.triton.aot import AotCase
from paged_backend.kernels.triton.sampling import change_passes, passes
from paged_backend.kernels.triton.sampling.blocks import blocks_kernel, masses_kernel
from paged_backend.kernels.triton.sampling.changes import change_kernel, copy_kernel
from paged_backend.kernels.triton.sampling.description import logprobs_kernel, norms_kernel, ranks_kernel
from paged_backend.kernels.triton.sampling.draw import draw_kernel
from paged_backend.kernels.triton.sampling.likely import COUNTS, likely_kernel
from paged_backend.kernels.triton.sampling.penalties import penalise_kernel
from paged_backend.kernels.triton.sampling.threshold import threshold_kernel

_TYPES = {
    "logits": "*fp32",
    "row_stride": "i32:16",
    "changed": "*fp32",
    "vocab_size": "i32:16",
    "jobs": "*i64",
    "num_jobs": "i32",
    "num_blocks": "i32",
    "peaks": "*fp32",
    "firsts": "*i32",
    "units": "*i64",
    "group_peaks": "*fp32",
    "lowest": "*fp32",
    "active": "*i32",
    "listed": "*fp32",
    "draws": "*i64",
    "num_draws": "i32",
    "lists": "*i64",
    "num_lists": "i32",
    "noted": "*i64",
    "norms": "*fp64",
    "token_ids": "*i64",
    "num_changed": "i32",
    "counts": "*i32",
    "penalties": "*fp32",
    "out_logprobs": "*fp32",
    "described": "*i64",
    "num_described": "i32",
    "logprobs": "*fp32",
    "ranks": "*i32",
}
_CHANGE_TYPES = {
    "logits": "*fp32",
    "row_stride": "i32:16",
    "vocab_size": "i32:16",
    "table": "*i32",
    "num_changed": "i32",
    "token_ids": "*i32",
    "masks": "*i32",
    "num_words": "i32",
    "norms": "*fp64",
    "changed": "*fp32",
    "counts": "*i32",
}


def aot_cases() -> Iterator[AotCase]:
    """For vocabularies of up to 2 ** 18 tokens; of up to 2 ** 19, and in all variants, in the wide sweep."""
    for name, kernel in (("penalise", penalise_kernel), ("blocks", blocks_kernel), ("masses", masses_kernel)):
        yield _case(name, kernel, _TYPES, {}, passes.NUM_WARPS[name])
    for name, kernel in (("copy", copy_kernel), ("change", change_kernel)):
        yield _case(name, kernel, _CHANGE_TYPES, {}, change_passes.NUM_WARPS[name])
    for name, kernel in (("logprobs", logprobs_kernel), ("ranks", ranks_kernel)):
        yield _case(name, kernel, _TYPES, {}, passes.NUM_WARPS[name])
    for num_blocks in (128, 256):
        sizes = {"BLOCKS": num_blocks, "GROUPS": num_blocks * passes.GROUPS_IN_BLOCK}
        for name, kernel, choices in _BY_ROW:
            for number, choice in enumerate(choices):
                constants = {key: value for key, value in (sizes | choice).items() if key in kernel.arg_names}
                full_name = "_".join([name, *(f"{key}={value}".lower() for key, value in constants.items())])
                types = _TYPES | {"out_tokens": "*i64" if choice.get("BEST") else "*i32"}
                wide = num_blocks > 128 or number > 0
                yield _case(full_name, kernel, types, constants, passes.NUM_WARPS[name], wide=wide)


_BY_ROW: list[tuple[str, Any, list[dict[str, Any]]]] = [
    ("threshold", threshold_kernel, [{"MASS": True}, {"MASS": False}]),
    ("draw", draw_kernel, [{}]),
    ("likely", likely_kernel, [{"COUNT": count, "BEST": best} for count in COUNTS for best in (False, True)]),
    ("norms", norms_kernel, [{}]),
]


def _case(
    name: str, kernel: Any, types: Mapping[str, str], constants: Mapping[str, Any], num_warps: int, wide: bool = False
) -> AotCase:
    signature = {name: types[name] for name in kernel.arg_names if name not in constants}
    return AotCase(
        name=name,
        kernel=kernel,
        signature=signature,
        constexprs=constants,
        num_warps=num_warps,
        fp_fusion=name not in ("penalise", "change"),
        wide=wide,
    )
