"""`Kernels.sample` on the GPU: a few kernels over a step's logits, and nothing that waits for the host.

A row is a job: `blocks` finds each block's largest logit and the sum of its weights; `threshold` the logit that filters
leave a token at, when there are any, and `blocks` sums up again; `draw` inverts the distribution. `changes` makes
changed copies of rows before, `likely` lists the most likely tokens, `description` says how likely a token was.
`launch` puts these together for a batch, `resident` for plain rows in memory that a CUDA graph may hold.
"""

from __future__ import annotations

from paged_backend.kernels.triton.sampling.aot import aot_cases
from paged_backend.kernels.triton.sampling.launch import launch, sample

__all__ = ["aot_cases", "launch", "sample"]
