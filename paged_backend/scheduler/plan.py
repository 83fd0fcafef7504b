"""What crosses between scheduler and executor: plain data, no tensor, no policy.

Sequences of token and block ids are lent for the length of one step: the executor reads them and keeps none.
What the scheduler makes once per sequence and step is not frozen, because a frozen dataclass takes twice as
long to make; nobody writes to it all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from paged_backend.sampling_params import SamplingParams


@dataclass(slots=True)
class SamplingTask:
    """Tokens to draw from the logits after a sequence's last scheduled token.

    Attributes:
        seeds: one per sample to draw (n > 1 only where a request's samples part ways).
        position: index in the sequence of the token to be drawn; (seed, position) keys the draw.
        prompt_token_ids, output_token_ids: for penalties.
        suppressed_token_ids: tokens that must not be drawn (EOS and stop tokens before min_tokens).
    """

    params: SamplingParams
    seeds: tuple[int, ...]
    position: int
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    suppressed_token_ids: tuple[int, ...] = ()


@dataclass(slots=True)
class ScheduledSequence:
    """One sequence's share of a step.

    Attributes:
        token_ids: tokens to compute, at least one; decode is the case of one.
        num_computed_tokens: tokens whose K/V are in the cache already: the position of token_ids[0].
        block_table: block ids that hold positions 0 .. num_computed_tokens + len(token_ids) - 1.
        sampling: None where more of the prompt is still to come.
    """

    seq_id: int
    token_ids: Sequence[int]
    num_computed_tokens: int
    block_table: Sequence[int]
    sampling: SamplingTask | None


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step.

    Attributes:
        block_copies: (source, destination) block ids, to be copied in every layer before anything is
            computed.
    """

    sequences: tuple[ScheduledSequence, ...]
    block_copies: tuple[tuple[int, int], ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens computed in this step."""
        return sum(len(sequence.token_ids) for sequence in self.sequences)


@dataclass(slots=True)
class SampledToken:
    """One drawn token.

    Attributes:
        logprob, rank: under the raw distribution; None where logprobs were not asked for.
        top: (token id, logprob) of the `logprobs` most likely tokens, most likely first.
    """

    token_id: int
    logprob: float | None = None
    rank: int | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step drew: by sequence id, one token per seed of its sampling task."""

    samples: Mapping[int, tuple[SampledToken, ...]]
