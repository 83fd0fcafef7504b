"""What a step's kernels have drawn, while it is still on the device, and once it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paged_backend.kernels.sampling_batch import SampledBatch


@dataclass(frozen=True, slots=True)
class ResultShape:
    """What there is to know of N tokens.

    Attributes:
        num_results: N.
        starts: for each row, the first of its places among them; empty where every row has one.
        num_top: by row that is described, how many of its most likely tokens are listed.
        describes: whether log-probabilities and ranks are wanted of any.
        has_scores: whether any row takes its most likely tokens.
    """

    num_results: int
    starts: Sequence[int] = ()
    num_top: dict[int, int] | None = None
    has_scores: bool = False


class Results:
    """Memory of N tokens and what is to be known of them, in one piece, so that one copy brings all of it.

    Attributes:
        token_ids: int64 [N].
        logprobs, scores: float32 [N], or [0] where nobody asks.
        ranks: int32 [N], or [0].
        top_ids, top_logprobs: int32 and float32 [number of listed tokens], row after row.
    """

    def __init__(self, shape: ResultShape, words: Tensor) -> None:
        """
        Args:
            words: int64, of `num_words(shape)`.
        """
        num_results, num_listed = shape.num_results, sum((shape.num_top or {}).values())
        described = 0 if shape.num_top is None else num_results
        sizes = [described, described, num_results if shape.has_scores else 0, num_listed, num_listed]
        self.token_ids = words[:num_results]
        rest = words[num_results:].view(torch.int32)[: sum(sizes)]
        logprobs, self.ranks, scores, self.top_ids, top_logprobs = rest.split(sizes)
        self.logprobs, self.scores = logprobs.view(torch.float32), scores.view(torch.float32)
        self.top_logprobs = top_logprobs.view(torch.float32)


def num_words(shape: ResultShape) -> int:
    """Words of 8 bytes that results take."""
    described = 0 if shape.num_top is None else 2 * shape.num_results + 2 * sum(shape.num_top.values())
    halves = described + (shape.num_results if shape.has_scores else 0)
    return shape.num_results + (halves + 1) // 2


class DeviceSamples:
    """See `LaunchedSamples`."""

    def __init__(self, shape: ResultShape, words: Tensor) -> None:
        """Orders the results' copy to the host, behind what is ordered on the current stream.

        Args:
            words: see `Results`; what is ordered after this may write to it.
        """
        self.token_ids = words[: shape.num_results]
        self._shape = shape
        self._copied: torch.cuda.Event | None = None
        if words.device.type == "cuda":
            self._words = torch.empty(words.shape, dtype=words.dtype, pin_memory=True)
            self._words.copy_(words, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        else:
            self._words = words.clone()

    def read(self) -> SampledBatch:
        """See `LaunchedSamples`."""
        if self._copied is not None:
            self._copied.synchronize()
        shape, results = self._shape, Results(self._shape, self._words)
        token_ids: list[int] = results.token_ids.tolist()
        sampled = SampledBatch(token_ids, scores=results.scores.tolist())
        if shape.num_top is None:
            return sampled
        sampled.logprobs, sampled.ranks = results.logprobs.tolist(), results.ranks.tolist()
        top_ids: list[int] = results.top_ids.tolist()
        top_logprobs: list[float] = results.top_logprobs.tolist()
        begin = 0
        for row, count in shape.num_top.items():
            first = shape.starts[row] if shape.starts else row
            if token_ids[first] >= 0:
                end = begin + count
                sampled.top[row] = tuple(zip(top_ids[begin:end], top_logprobs[begin:end], strict=True))
            begin += count
        return sampled
