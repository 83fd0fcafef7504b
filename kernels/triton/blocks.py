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
from paged_backend.kernels.tensors import describe
from paged_backend.kernels.triton.aot import AotCase

COPY_TILES = {16: (512, 4), 256: (64, 8), 4096: (8, 16)}
"""By the most pairs that it is for: the words of each, and the warps. A tile waits in registers."""
SWAP_WORDS = 2048
SWAP_WARPS = 4


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


def swap_blocks(storage: Tensor, slots: Tensor, pairs: Tensor, inwards: bool) -> None:
    """See `Kernels.swap_blocks`. The card reads and writes the host's memory by itself, in one launch."""
    if pairs.numel() == 0 or slots.numel() == 0:
        return
    words = storage.view(torch.int32)
    num_lanes, _, num_blocks, num_words = words.shape
    swap_kernel[(len(pairs), triton.cdiv(num_words, SWAP_WORDS), 2 * num_lanes)](
        words,
        slots.view(torch.int32),
        pairs.contiguous(),
        num_blocks,
        len(slots),
        num_words,
        INWARDS=inwards,
        WORDS=SWAP_WORDS,
        num_warps=SWAP_WARPS,
        enable_fp_fusion=True,
    )


def warm_up(device: torch.device) -> None:
    """Copies and swaps some bytes in every way there is, so that Triton compiles, or finds in its cache, what that
    takes."""
    storage = torch.zeros(1, 2, 1, 64, dtype=torch.uint8, device=device)
    slots = torch.zeros(1, 1, 2, 64, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for most in COPY_TILES:
        copy_blocks(storage, torch.zeros(most, 2, dtype=torch.int64, device=device))
    for inwards in (False, True):
        swap_blocks(storage, slots, torch.zeros(1, 2, dtype=torch.int64, device=device), inwards)


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


@triton.jit(do_not_specialize=["num_blocks", "num_slots"])
def swap_kernel(storage, slots, pairs, num_blocks, num_slots, num_words, INWARDS: tl.constexpr, WORDS: tl.constexpr):
    """WORDS words of a pair in a lane: storage [lanes, num_blocks, num_words], slots [num_slots, lanes, num_words].

    A pair outside them, which only the CPU checks, is left out.
    """
    lane = tl.program_id(2).to(tl.int64)
    words = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    block = tl.load(pairs + 2 * tl.program_id(0))
    slot = tl.load(pairs + 2 * tl.program_id(0) + 1)
    inside = (block >= 0) & (block < num_blocks) & (slot >= 0) & (slot < num_slots)
    here = words < tl.where(inside, num_words, 0)
    cached = storage + (lane * num_blocks + block) * num_words + words
    swapped = slots + (slot * tl.num_programs(2) + lane) * num_words + words
    if INWARDS:
        tl.store(cached, tl.load(swapped, mask=here), mask=here)
    else:
        tl.store(swapped, tl.load(cached, mask=here), mask=here)


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
            name="swap in" if inwards else "swap out",
            kernel=swap_kernel,
            signature={"storage": "*i32", "slots": "*i32", "pairs": "*i64", "num_slots": "i32"} | counts,
            constexprs={"INWARDS": inwards, "WORDS": SWAP_WORDS},
            num_warps=SWAP_WARPS,
        )
