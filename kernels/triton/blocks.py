"""Blocks of the paged cache are moved as they are, bytes of all layers: within the pool, and to the host tier and back.

Words are of 4 bytes, as blocks are multiples of 64. A program moves the same few words of several blocks of a lane
(the keys or the values of one layer).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import triton
import triton.language as tl
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels import checks
from paged_backend.kernels.tensors import check_tensor, describe
from paged_backend.kernels.triton.aot import AotCase

COPY_TILES = {16: (512, 4), 256: (64, 8), 4096: (8, 16)}
"""By the most pairs that it is for: the words of each, and the warps. A tile waits in registers."""
MOVE_WORDS = 2048
MOVE_WARPS = 4


def copy_blocks(storage: Tensor, pairs: Tensor) -> None:
    """See `Kernels.copy_blocks`. At most 4096 pairs.

    Every program has its own words of all pairs: it reads them all before it writes any, so no program reads what
    another one writes.
    """
    num_pairs = len(pairs)
    if num_pairs == 0:
        return
    words = storage.view(torch.int32)
    num_lanes, _, num_blocks, num_words = words.shape
    for most, (tile_words, num_warps) in COPY_TILES.items():
        if num_pairs <= most:
            copy_kernel[(triton.cdiv(num_words, tile_words), 2 * num_lanes)](
                words,
                pairs.contiguous(),
                num_pairs,
                num_blocks,
                num_words,
                PAIRS=most,
                WORDS=tile_words,
                num_warps=num_warps,
                enable_fp_fusion=True,
            )
            return
    raise KernelError(f"pairs must be at most {max(COPY_TILES)} in a call, got {describe(pairs)}.")


def gather_blocks(storage: Tensor, blocks: Tensor, staging: Tensor) -> None:
    """staging[i] = storage[:, :, blocks[i]]: on their way out of the pool, where each block's bytes lie together.

    Args:
        storage: uint8 [L, 2, B, block_bytes], contiguous.
        blocks: int64 [N], in 0 .. B - 1.
        staging: uint8 [at least N, L, 2, block_bytes], contiguous; its first N are written.

    Raises:
        KernelError: an argument is not as said.
    """
    _move(storage, blocks, staging, inwards=False)


def scatter_blocks(staging: Tensor, storage: Tensor, blocks: Tensor) -> None:
    """storage[:, :, blocks[i]] = staging[i]: on their way into the pool. Arguments as `gather_blocks` has them; blocks
    all different."""
    _move(storage, blocks, staging, inwards=True)


def _move(storage: Tensor, blocks: Tensor, staging: Tensor, *, inwards: bool) -> None:
    checks.check_storage(storage)
    check_tensor("blocks", blocks)
    check_tensor("staging", staging)
    if blocks.dtype != torch.int64 or blocks.dim() != 1 or not blocks.is_contiguous():
        raise KernelError(f"blocks must be contiguous int64 [N], got {describe(blocks)}.")
    num_lanes, two, num_blocks, block_bytes = storage.shape
    wanted = (num_lanes, two, block_bytes)
    if staging.dtype != torch.uint8 or staging.shape[1:] != wanted or not staging.is_contiguous():
        raise KernelError(
            f"staging must be contiguous uint8 [N, {', '.join(map(str, wanted))}], got {describe(staging)}."
        )
    if len(staging) < len(blocks):
        raise KernelError(f"staging must hold {len(blocks)} blocks, got {describe(staging)}.")
    checks.check_devices(("storage", storage), ("blocks", blocks), ("staging", staging))
    checks.check_indices("blocks", blocks, num_blocks)
    if staging.numel() == 0 or len(blocks) == 0:
        return
    words = storage.view(torch.int32)
    num_words = words.shape[3]
    move_kernel[(len(blocks), triton.cdiv(num_words, MOVE_WORDS), 2 * num_lanes)](
        words,
        blocks,
        staging.view(torch.int32),
        num_blocks,
        num_words,
        INWARDS=inwards,
        WORDS=MOVE_WORDS,
        num_warps=MOVE_WARPS,
        enable_fp_fusion=True,
    )


@triton.jit(do_not_specialize=["num_pairs", "num_blocks"])
def copy_kernel(storage, pairs, num_pairs, num_blocks, num_words, PAIRS: tl.constexpr, WORDS: tl.constexpr):
    """WORDS words of a lane, in all pairs: storage [lanes, num_blocks, num_words], pairs [num_pairs, 2].

    A pair outside the pool, which only the CPU checks, is left out.
    """
    lane = tl.program_id(1).to(tl.int64) * num_blocks
    words = tl.program_id(0) * WORDS + tl.arange(0, WORDS)
    pair = tl.arange(0, PAIRS)
    sources = tl.load(pairs + pair * 2, mask=pair < num_pairs, other=-1)
    destinations = tl.load(pairs + pair * 2 + 1, mask=pair < num_pairs, other=-1)
    inside = (sources >= 0) & (sources < num_blocks) & (destinations >= 0) & (destinations < num_blocks)
    here = inside[:, None] & (words < num_words)[None, :]
    numbers = tl.load(storage + ((lane + sources) * num_words)[:, None] + words[None, :], mask=here)
    tl.debug_barrier()  # no thread writes before all have read
    tl.store(storage + ((lane + destinations) * num_words)[:, None] + words[None, :], numbers, mask=here)


@triton.jit(do_not_specialize=["num_blocks"])
def move_kernel(storage, blocks, staging, num_blocks, num_words, INWARDS: tl.constexpr, WORDS: tl.constexpr):
    """WORDS words of a block of a lane: storage [lanes, num_blocks, num_words], staging [N, lanes, num_words].

    A block outside the pool, which only the CPU checks, is left out.
    """
    lane = tl.program_id(2).to(tl.int64)
    words = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    block = tl.load(blocks + tl.program_id(0))
    here = words < tl.where((block >= 0) & (block < num_blocks), num_words, 0)
    pooled = storage + (lane * num_blocks + block) * num_words + words
    staged = staging + (tl.program_id(0).to(tl.int64) * tl.num_programs(2) + lane) * num_words + words
    if INWARDS:
        tl.store(pooled, tl.load(staged, mask=here), mask=here)
    else:
        tl.store(staged, tl.load(pooled, mask=here), mask=here)


def aot_cases() -> Iterable[AotCase]:
    """Every configuration."""
    counts = {"num_blocks": "i32", "num_words": "i32:16"}
    for most, (tile_words, num_warps) in COPY_TILES.items():
        yield AotCase(
            name=f"copy {most}",
            kernel=copy_kernel,
            signature={"storage": "*i32", "pairs": "*i64", "num_pairs": "i32"} | counts,
            constexprs={"PAIRS": most, "WORDS": tile_words},
            num_warps=num_warps,
        )
    for inwards in (False, True):
        yield AotCase(
            name="scatter" if inwards else "gather",
            kernel=move_kernel,
            signature={"storage": "*i32", "blocks": "*i64", "staging": "*i32"} | counts,
            constexprs={"INWARDS": inwards, "WORDS": MOVE_WORDS},
            num_warps=MOVE_WARPS,
        )
