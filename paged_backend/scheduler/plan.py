"""What crosses between scheduler and executor: plain data, no tensor, no policy.

A sequence's line in the plan is made when it is admitted and lent to every step until it ends or is preempted;
between steps the scheduler writes to it what has changed, nobody else ever does. So an executor that keeps
something by sequence may know it by the line itself, and a decode step makes nothing per sequence. Where a step is
planned while the one before is computed, lines are the newest plan's: an executor reads a plan when it gets it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from paged_backend.kv.host_tier import NO_TRANSFERS, Transfers
from paged_backend.sampling_params import SamplingParams
from paged_backend.structured.matcher import Matcher

NOT_DRAWN = -1
"""In the place of a token: logits were not numbers, or the parameters left no token."""

NOT_YET_DRAWN = -2
"""In the place of a token that the step before draws, which is still being computed: only its executor knows it."""


_ALL = 2**40


def num_described(num_logprobs: int) -> int:
    """Candidates that `logprobs` or `prompt_logprobs` asks for, where -1 means all; of any size."""
    return _ALL if num_logprobs == -1 else num_logprobs


@dataclass(slots=True, eq=False)
class SamplingTask:
    """Tokens to draw from the logits after a sequence's last scheduled token.

    Attributes:
        seeds: one per sample to draw (n > 1 only where a request's samples part ways); none for a beam.
        prompt_token_ids: for penalties.
        token_ids: all known tokens, the prompt's and those drawn after it; lent. (seed, their number) keys the draw.
        suppressed_token_ids: tokens that must not be drawn (EOS and stop tokens before min_tokens).
        num_candidates: above 0, nothing is drawn: the result holds that many of the most likely tokens instead.
        matcher: the sample's place in its grammar; whoever draws lets it follow the tokens. None without a grammar.
        penalises: whether tokens are less, or more, likely to be drawn for being in the prompt or the output.
        changes_more: whether the parameters change logits in another way, beside what is suppressed.
        changes_logits: whether they do either.
        stands_apart: whether its row is looked at by itself: functions of the user's change its logits, or more is to
            be told of it than the token drawn and the most likely ones.
        num_logprobs: candidates that the draw describes beside its token, of any size; -1 for no description at all.
        looks_again: whether more is to be told of its logits as they came: of tokens that the request has named, or
            whether they are numbers, as its parameters may leave nothing to draw.
        needs_host: whether the draw takes the tokens before it in another way than by counting them, or Python
            functions. Else it can be made where the logits are, unseen.
    """

    params: SamplingParams
    seeds: tuple[int, ...]
    prompt_token_ids: Sequence[int]
    token_ids: Sequence[int]
    suppressed_token_ids: tuple[int, ...] = ()
    num_candidates: int = 0
    matcher: Matcher | None = None
    penalises: bool = field(init=False)
    changes_more: bool = field(init=False)
    changes_logits: bool = field(init=False)
    looks_again: bool = field(init=False)
    stands_apart: bool = field(init=False)
    num_logprobs: int = field(init=False)
    needs_host: bool = field(init=False)

    def __post_init__(self) -> None:
        params = self.params
        self.penalises = bool(
            params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        )
        bad_words = params.bad_words_token_ids or ()
        restricts = params.allowed_token_ids is not None or bool(bad_words)
        has_grammar = params.structured_outputs is not None
        self.changes_more = restricts or has_grammar or bool(params.logit_bias)
        self.changes_logits = self.penalises or self.changes_more
        self.looks_again = restricts or bool(params.logprob_token_ids)
        self.stands_apart = bool(params.logits_processors or params.logprob_token_ids)
        self.num_logprobs = -1
        if params.describes_tokens and not params.logits_processors:
            self.num_logprobs = num_described(params.logprobs or 0)
        looks_back = any(len(word) > 1 for word in bad_words)
        self.needs_host = looks_back or has_grammar or bool(params.logits_processors) or params.use_beam_search

    @property
    def num_results(self) -> int:
        """Tokens that the result holds for it."""
        return self.num_candidates or len(self.seeds)

    @property
    def position(self) -> int:
        """Index in the sequence of the token to be drawn."""
        return len(self.token_ids)

    @property
    def output_token_ids(self) -> Sequence[int]:
        """The tokens after the prompt, for penalties."""
        return self.token_ids[len(self.prompt_token_ids) :]


@dataclass(slots=True, eq=False)
class ScheduledSequence:
    """One sequence's share of a step; compared by identity.

    Attributes:
        token_ids: tokens to compute, at least one; decode is the case of one, and then it may be NOT_YET_DRAWN: what
            the step before, still in flight, draws for this sequence.
        num_computed_tokens: tokens whose K/V are in the cache already: the position of token_ids[0].
        block_table: block ids that hold positions 0 .. num_computed_tokens + len(token_ids) - 1, laid out like
            `BlockTable.block_ids`. From step to step it only grows, but where the plan's block_copies put a copy in the
            place of the block that token_ids[0] goes to, and where NO_BLOCK takes the place of a block that no window
            reaches any more.
        sampling: None where more of the prompt is still to come.
    """

    seq_id: int
    token_ids: Sequence[int]
    num_computed_tokens: int
    block_table: Sequence[int]
    sampling: SamplingTask | None


@dataclass(frozen=True, slots=True)
class ScoringTask:
    """Tokens of a prompt whose log-probabilities are wanted, as many as the step computes.

    Attributes:
        request_id: whose they are.
        line: index among the plan's sequences.
        offset: the first of them is told of by the logits after the line's token of this index, the next by those after
            the next token.
        token_ids: one at least.
        num_logprobs: candidates to describe beside each, of any size.
    """

    request_id: str
    line: int
    offset: int
    token_ids: Sequence[int]
    num_logprobs: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step.

    Attributes:
        block_copies: (source, destination) block ids, to be copied whole before anything is computed.
        num_tokens: tokens computed in this step; counted where they are not given.
        transfers: what moves between the pool and the tiers below it, before the copies.
        scoring: what is wanted of prompts, in the order of the sequences.
    """

    sequences: tuple[ScheduledSequence, ...]
    block_copies: tuple[tuple[int, int], ...] = ()
    num_tokens: int = -1
    transfers: Transfers = NO_TRANSFERS
    scoring: tuple[ScoringTask, ...] = ()

    def __post_init__(self) -> None:
        if self.num_tokens < 0:
            object.__setattr__(self, "num_tokens", sum(len(sequence.token_ids) for sequence in self.sequences))

    @property
    def draws_unseen(self) -> bool:
        """Whether whoever computes it can draw all of its tokens by itself, one for each task."""
        if self.scoring:
            return False
        tasks = [line.sampling for line in self.sequences]
        return all(task is None or (not task.needs_host and len(task.seeds) == 1) for task in tasks)


@dataclass(slots=True)
class SampledToken:
    """One drawn token.

    Attributes:
        logprob, rank: under the raw distribution; None where logprobs were not asked for.
        top: (token id, logprob) of the `logprobs` most likely tokens, most likely first.
        asked: (token id, logprob, rank) of those in `logprob_token_ids`.
    """

    token_id: int
    logprob: float | None = None
    rank: int | None = None
    top: tuple[tuple[int, float], ...] = ()
    asked: tuple[tuple[int, float, int], ...] = ()


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step drew.

    Attributes:
        token_ids: one for each seed of each sampling task, or its candidates, the most likely first, in the plan's
            order; NOT_DRAWN for all of a task that left nothing to draw, and in place of candidates that there are not.
        described: the same tokens in full, by place in `token_ids`, where logprobs were asked for.
        scores: like `token_ids`, the candidates' log-probabilities after all that the parameters change; empty where no
            task asks for candidates.
        scored: for each of the plan's scoring tasks, its tokens; NOT_DRAWN where the logits were not numbers.
        faults: by place in `token_ids`, of what was not drawn because the request itself was at fault: in which way.
        transfer_s: seconds that swapping out and in took.
        compute_s: seconds that the rest took; 0 if nobody measured.
    """

    token_ids: Sequence[int]
    described: Mapping[int, SampledToken] = field(default_factory=dict)
    scores: Sequence[float] = ()
    scored: Sequence[Sequence[SampledToken]] = ()
    faults: Mapping[int, str] = field(default_factory=dict)
    transfer_s: float = 0.0
    compute_s: float = 0.0
