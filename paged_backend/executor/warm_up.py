"""Everything that a GPU may have to compute done once before the server is ready: no request waits for a compiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from tqdm.auto import tqdm

from paged_backend.executor.kv_storage import KVStorage
from paged_backend.kernels.interface import Kernels
from paged_backend.scheduler.plan import StepPlan

_COPIES = (1, 17, 257)
"""Numbers of blocks that are copied at once, so that whatever depends on them has been met."""


def sizes_to_meet(most: int) -> Iterator[int]:
    """1, 2, 4 and so on, and `most`: what depends on a step's size changes at such numbers."""
    size = 1
    while size < most:
        yield size
        size *= 2
    yield most


def warm_up(
    kernels: Kernels, storage: KVStorage, vocab_size: int, run: Callable[[StepPlan], object], plans: Sequence[StepPlan]
) -> None:
    """Computes plans, moves blocks and draws in every way there is, with a bar. The pool must still be empty.

    Seconds where Triton's cache has been filled by an earlier start; else up to some minutes.
    """
    device, num_blocks = storage.blocks.device, storage.blocks.shape[2]

    def copy(count: int) -> None:
        blocks = torch.arange(count) % num_blocks  # onto themselves
        kernels.copy_blocks(storage.blocks, torch.stack([blocks, blocks], 1).to(device))

    def swap(inwards: bool) -> None:
        lanes, two, _, num_bytes = storage.blocks.shape
        slots = torch.zeros(1, lanes, two, num_bytes, dtype=torch.uint8, device=device)
        kernels.swap_blocks(storage.blocks, slots, torch.zeros(1, 2, dtype=torch.int64).to(device), inwards=inwards)

    works: list[Callable[[], object]] = [lambda: kernels.warm_up_sampling(vocab_size)]
    works += [lambda count=count: copy(count) for count in _COPIES]  # type: ignore[misc]
    works += [lambda inwards=inwards: swap(inwards) for inwards in (False, True)]  # type: ignore[misc]
    works += [lambda plan=plan: run(plan) for plan in plans]  # type: ignore[misc]
    for work in tqdm(works, desc="Compiling kernels", unit="launch"):
        with torch.inference_mode():
            work()
    storage.blocks.zero_()
