"""What implementations have in common whose draws are made when they are asked for, on the host's time."""

from __future__ import annotations

from torch import Tensor

from paged_backend.kernels.interface import Kernels
from paged_backend.kernels.sampling_batch import LaunchedSamples, ReadSamples, RecordedSampler, SamplingBatch


class DrawsAtOnce:
    """Part of `Kernels`: nothing is launched, recorded or compiled ahead."""

    def launch_sample(self: Kernels, logits: Tensor, batch: SamplingBatch) -> LaunchedSamples:
        """See `Kernels.launch_sample`. Draws at once."""
        return ReadSamples(self.sample(logits, batch))

    def recorded_sampler(self, max_rows: int, vocab_size: int) -> RecordedSampler | None:
        """See `Kernels.recorded_sampler`. None: the host draws."""
        return None

    def warm_up(self, vocab_size: int) -> None:
        """See `Kernels.warm_up`. Nobody waits here."""
