"""`Kernels.sample` in C++ (`csrc/sampling.h`)."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.counted_sampling import sample_counted
from paged_backend.kernels.cpu import _cpu
from paged_backend.kernels.sampling_batch import SampledBatch, SamplingBatch, check_logits, check_masks


def sample(runtime: _cpu.Runtime, logits: Tensor, batch: SamplingBatch) -> SampledBatch:
    """See `Kernels.sample`. Each row is computed by one thread in one order: it depends on nothing else.

    This is what a draw on the CPU is defined by. Weights, and their sums over blocks of 256 tokens, are float32, all
    else float64: a token differs from the reference's only where the point falls within 6e-7 of the distribution
    (mostly much less) from the border of two tokens, or the share top_p that near to the sum down to a token.
    """
    check_logits(logits)
    if batch.counted:
        return sample_counted(partial(sample, runtime), logits, batch)
    check_masks(batch.token_masks, logits.shape[1])
    if logits.device.type != "cpu":
        raise KernelError(f"logits must be on the CPU, got {logits.device}.")
    try:
        return SampledBatch(
            *_cpu.sample(
                runtime,
                logits,
                batch.seeds,
                batch.temperatures,
                batch.positions,
                batch.top_k,
                batch.top_p,
                batch.min_p,
                batch.num_logprobs,
                batch.num_best,
                batch.given,
                batch.changes,
                batch.token_masks,
            )
        )
    except ValueError as error:
        raise KernelError(str(error)) from None
