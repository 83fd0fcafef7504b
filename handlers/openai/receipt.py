"""What a request took, told to whoever asks for it with `return_receipt`."""

from __future__ import annotations

from paged_backend.handlers.openai.protocol.replies import Receipt
from paged_backend.outputs import RequestStateStats


def receipt(stats: RequestStateStats) -> Receipt:
    """One prompt's receipt."""
    return {
        "queue_seconds": stats.queue_s,
        "prefill_seconds": stats.prefill_s,
        "decode_seconds": stats.decode_s,
        "cached_tokens": stats.num_cached_tokens,
        "kv_block_seconds": stats.kv_block_seconds,
        "preemptions": {"recompute": stats.num_recomputes, "swap": stats.num_swaps},
        "steps": stats.num_steps,
    }
