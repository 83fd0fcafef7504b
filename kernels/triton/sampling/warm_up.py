"""Every kernel of sampling launched once, before anybody waits for it."""

from __future__ import annotations

import torch

from paged_backend.kernels.sampling_batch import LogitChanges, SamplingBatch
from paged_backend.kernels.token_counts import TokenCounts
from paged_backend.kernels.triton.sampling.launch import launch
from paged_backend.kernels.triton.sampling.likely import COUNTS

_NUM_ROWS = 3


def warm_up(vocab_size: int, device: torch.device) -> None:
    """Draws some tokens in every way there is, so that Triton compiles (or finds in its cache) what that takes.

    Seconds for each kernel that is not in Triton's cache; afterwards no request has to wait for a compiler.
    """
    logits = torch.zeros(_NUM_ROWS + 1, vocab_size, device=device)
    changes = LogitChanges(logit_bias={0: 1.0}, presence_penalty=1.0, output_token_ids=[0])
    # Rows that a step scores may begin where 16 bytes are not read at once.
    for first in (0,) if logits[1].data_ptr() % 16 == 0 else (0, 1):
        for count in COUNTS:
            batch = SamplingBatch(
                seeds=[(1,), (1,), ()],
                temperatures=[1.0, 0.0, 0.0],
                positions=[0, 0, 0],
                top_k=[1, 0, 0],
                top_p=[0.5, 1.0, 1.0],
                min_p=[0.0, 0.0, 0.0],
                num_logprobs=[-1, count, -1],
                num_best=[0, 0, min(count, vocab_size)],
                changes={0: changes},
            )
            launch(logits[first : first + _NUM_ROWS], batch)
    counts = TokenCounts.make(1, vocab_size, device)
    launch(logits[:1], SamplingBatch(seeds=[(1,)], temperatures=[0.0], counted=[0], token_counts=counts))
