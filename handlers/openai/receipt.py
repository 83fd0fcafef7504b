"""What a request took, told to whoever asks for it with `return_receipt`."""

from __future__ import annotations

from typing import Any

from paged_backend.outputs import RequestStateStats


def receipt(stats: RequestStateStats) -> dict[str, Any]:
    """One prompt's receipt.

    queue_seconds, prefill_seconds and decode_seconds add up to its whole life in the engine. kv_block_seconds are
    blocks of the KV cache times the seconds that it held them; a block that several of its samples share counts for
    each. preemptions are those after which its tokens were computed again, and those that swapped its blocks out.
    """
    return {
        "queue_seconds": stats.queue_s,
        "prefill_seconds": stats.prefill_s,
        "decode_seconds": stats.decode_s,
        "cached_tokens": stats.num_cached_tokens,
        "kv_block_seconds": stats.kv_block_seconds,
        "preemptions": {"recompute": stats.num_recomputes, "swap": stats.num_swaps},
        "steps": stats.num_steps,
    }
