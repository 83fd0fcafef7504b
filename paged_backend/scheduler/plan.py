"""What crosses between scheduler and executor: plain data, no tensor, no policy.

A sequence's line in the plan is made when it is admitted and lent to every step until it ends or is preempted;
between steps the scheduler writes to it what has changed, nobody else ever does. So an executor that keeps
something by sequence may know it by the line itself, and a decode step makes nothing per sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from paged_backend.sampling_params import SamplingParams


@dataclass(slots=True, eq=False)
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


@dataclass(slots=True, eq=False)
class ScheduledSequence:
    """One sequence's share of a step; compared by identity.

    Attributes:
        token_ids: tokens to compute, at least one; decode is the case of one.
        num_computed_tokens: tokens whose K/V are in the cache already: the position of token_ids[0].
        block_table: block ids that hold positions 0 .. num_computed_tokens + len(token_ids) - 1. From step to
            step it only grows, but where the plan's block_copies put a copy in a block's place.
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
        return sum([len(sequence.token_ids) for sequence in self.sequences])


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
    """What a step drew.

    Attributes:
        samples: token ids for each line of the plan that asked for some, in the plan's order: one per seed of its
            sampling task, or none where nothing could be drawn.
        described: the same tokens in full, by place in `samples`, where logprobs were asked for.
    """

    samples: Sequence[Sequence[int]]
    described: Mapping[int, Sequence[SampledToken]] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Sequence[Sequence[SampledToken]]) -> StepResult:
        """A result of tokens in full, of which only those with a logprob need to be kept so."""
        described = {place: row for place, row in enumerate(rows) if row and row[0].logprob is not None}
        return cls([[token.token_id for token in row] for row in rows], described)
