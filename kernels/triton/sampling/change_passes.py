"""Launches of what changes logits."""

from __future__ import annotations

import torch
from torch import Tensor

from paged_backend.kernels.triton.sampling.change_table import NUM_CHANGE_LINES, ChangeTable
from paged_backend.kernels.triton.sampling.changes import change_kernel, copy_kernel
from paged_backend.kernels.triton.sampling.passes import num_blocks_of
from paged_backend.kernels.triton.sampling.upload import to_device

NUM_WARPS = {"copy": 4, "change": 4}
"""Of a program of each kernel."""


def change_rows(
    logits: Tensor, changes: ChangeTable, words: Tensor, token_masks: Tensor | None, norms: Tensor, changed: Tensor
) -> None:
    """Writes copies of the rows that are changed, in the order of the table.

    Args:
        words: the table's, on the device, as bytes.
        token_masks: the batch's, on the CPU.
        norms: float64, what the table's numbers of norms mean.
        changed: float32 [C, V], one for each at least.
    """
    num_changed, vocab_size = len(changes.rows), logits.shape[1]
    numbers = words.view(torch.int32)
    num_words = NUM_CHANGE_LINES * num_changed
    table, token_ids = numbers[:num_words], numbers[num_words:]
    counts = torch.empty(changes.num_counted, vocab_size, dtype=torch.int32, device=logits.device)
    masks = table if token_masks is None else to_device(token_masks, logits.device)
    mask_words = 0 if token_masks is None else token_masks.shape[1]
    stride = logits.stride(0) if logits.shape[0] > 1 else vocab_size
    copy_kernel[(num_changed, num_blocks_of(vocab_size))](
        logits,
        stride,
        vocab_size,
        table,
        num_changed,
        masks,
        mask_words,
        norms,
        changed,
        counts,
        num_warps=NUM_WARPS["copy"],
        enable_fp_fusion=True,
    )
    # Not fused: every implementation rounds the product with a penalty before it subtracts it.
    change_kernel[(num_changed,)](
        logits,
        stride,
        vocab_size,
        table,
        num_changed,
        token_ids,
        masks,
        mask_words,
        norms,
        changed,
        counts,
        num_warps=NUM_WARPS["change"],
        enable_fp_fusion=False,
    )
