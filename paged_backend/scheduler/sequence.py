"""One sample of one request, from the queue to its last token."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from collections.abc import Sequence as TokenIds
from typing import TYPE_CHECKING, Any

from paged_backend.kv.block_table import BlockTable
from paged_backend.outputs import FinishReason
from paged_backend.sampling_params import RepetitionDetectionParams, SamplingParams
from paged_backend.scheduler.plan import NOT_DRAWN, NOT_YET_DRAWN, SamplingTask, ScheduledSequence

if TYPE_CHECKING:
    from paged_backend.scheduler.beam_group import BeamGroup

REPETITION_DETECTED = "repetition_detected"
"""The stop_reason of a sample that has come to repeat itself; vLLM's."""

_SEED_SPAN = 2**64
_SEED_HALF = 2**63


class SequenceStatus(enum.Enum):
    """Where a sequence is: in the queue (new or preempted), holding blocks, or ended."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Sequence:
    """A prompt, the tokens drawn after it, and what ends it.

    A request with n > 1 is one sequence until its prompt is computed: then its n samples part ways.

    Attributes:
        seq_id: unique in the scheduler's life.
        request_id: the request it belongs to.
        index: which of the request's n samples.
        params: the request's sampling parameters.
        tenant: whose it is, for the fair policy.
        priority: lower goes first under the priority policy.
        arrival: the request's number in order of arrival.
        prompt_token_ids: shared with the request's other samples, never changed.
        token_ids: the known tokens, the prompt's and those drawn so far; the block table and the task read them too.
            While two steps are in flight, the last may be NOT_YET_DRAWN.
        max_tokens: output tokens at most, resolved: the context's and the pool's bounds are in it.
        eos_token_ids: the model's, sorted.
        num_cached_tokens: prompt tokens that came from the prefix cache on first admission.
        num_preemptions: how often its blocks were taken away.
        num_samples: samples or beams that it counts as: those that it stands for until they part, then 1.
        num_extra_blocks: blocks that must be free on admission beside those for its own tokens.
        group: the beam search that it belongs to, if any.
        num_booked_tokens: known tokens that its tenant was charged for, or that were not drawn here; the fair policy's.
        drawing_since: the step since which it draws a token in each, which charges its tenant; the fair policy's.
        table: its blocks.
        task: how its next token is drawn. It holds the seeds, one per sample that the next draw gives (its own, or
            all n before the samples part; none for a beam), and the EOS and stop tokens while fewer than min_tokens
            tokens are out.
        line: its line in the plans; a new one each time that it is admitted.
        quiet_below: while fewer tokens than this are known, a step takes no more than the last of them, which fills no
            block, and one draw, which ends nothing unless it is one of telling_ids. 0 where `schedule` must look first.
        telling_ids: tokens that may end it wherever they are drawn, and NOT_DRAWN.
        order: sort key; the smallest is served first and, but under the fair policy, preempted last.
        sample: what the scheduler's user keeps of it; None at first.
        finish_reason, stop_reason: set when it ends; stop_reason is the stop token id or stop string, if that
            ended it.
    """

    __slots__ = (
        "_num_tokens_to_check",
        "arrival",
        "drawing_since",
        "eos_token_ids",
        "finish_reason",
        "group",
        "index",
        "line",
        "max_tokens",
        "num_booked_tokens",
        "num_cached_tokens",
        "num_extra_blocks",
        "num_preemptions",
        "num_samples",
        "order",
        "params",
        "priority",
        "prompt_token_ids",
        "quiet_below",
        "request_id",
        "sample",
        "seq_id",
        "status",
        "stop_reason",
        "table",
        "task",
        "telling_ids",
        "tenant",
        "token_ids",
    )

    def __init__(
        self,
        *,
        seq_id: int,
        request_id: str,
        index: int,
        prompt_token_ids: TokenIds[int],
        params: SamplingParams,
        seeds: tuple[int, ...],
        tenant: str,
        priority: int,
        arrival: int,
        order: tuple[int, ...],
        max_tokens: int,
        eos_token_ids: Iterable[int],
        token_ids: list[int],
        table: BlockTable,
    ) -> None:
        self.seq_id = seq_id
        self.request_id = request_id
        self.index = index
        self.prompt_token_ids = prompt_token_ids
        self.token_ids = token_ids
        self.params = params
        self.tenant = tenant
        self.priority = priority
        self.arrival = arrival
        self.order = order
        self.max_tokens = max_tokens
        self.eos_token_ids = tuple(eos_token_ids)
        self.table = table
        self.status = SequenceStatus.WAITING
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self.sample: Any = None
        self.num_cached_tokens = 0
        self.num_preemptions = 0
        self.num_samples = max(1, len(seeds))
        self.num_extra_blocks = 0
        self.group: BeamGroup | None = None
        self.num_booked_tokens = len(token_ids)
        self.drawing_since: int | None = None
        stops = params.stop_token_ids or ()
        self.telling_ids = frozenset((NOT_DRAWN, *stops, *(() if params.ignore_eos else self.eos_token_ids)))
        suppressed = tuple(sorted({*stops, *self.eos_token_ids})) if params.min_tokens else ()
        self.task = SamplingTask(params, seeds, prompt_token_ids, token_ids, suppressed)
        self.line = ScheduledSequence(seq_id, (), 0, (), None)
        self.quiet_below = 0
        self._num_tokens_to_check = len(prompt_token_ids) + params.min_tokens if suppressed else self._first_to_check()

    def __repr__(self) -> str:
        return (
            f"Sequence({self.seq_id}, {self.request_id!r}[{self.index}], {self.status.value}, "
            f"{len(self.prompt_token_ids)}+{self.num_output_tokens} tokens, "
            f"{self.num_computed_tokens} computed)"
        )

    @property
    def output_token_ids(self) -> list[int]:
        """Tokens drawn so far."""
        return self.token_ids[len(self.prompt_token_ids) :]

    @property
    def num_output_tokens(self) -> int:
        """How many they are."""
        return len(self.token_ids) - len(self.prompt_token_ids)

    @property
    def num_computed_tokens(self) -> int:
        """Tokens whose K/V are in the cache."""
        return self.table.num_computed

    @property
    def max_cached_tokens(self) -> int:
        """Tokens that can come to need K/V: all that it may have, but the last, which is never computed."""
        return len(self.prompt_token_ids) + self.max_tokens - 1

    @property
    def ends_with_next(self) -> bool:
        """Whether the next token is its last one, whatever it is."""
        return self.num_output_tokens + 1 >= self.max_tokens

    @property
    def finished(self) -> bool:
        """Whether it has ended."""
        return self.status is SequenceStatus.FINISHED

    def sibling(
        self,
        seq_id: int,
        index: int,
        order: tuple[int, ...],
        seeds: tuple[int, ...],
        token_ids: list[int],
        table: BlockTable,
    ) -> Sequence:
        """Another sample of the same request, with tokens, and blocks that it may compute with, of its own."""
        sibling = Sequence(
            seq_id=seq_id,
            request_id=self.request_id,
            index=index,
            prompt_token_ids=self.prompt_token_ids,
            params=self.params,
            seeds=seeds,
            tenant=self.tenant,
            priority=self.priority,
            arrival=self.arrival,
            order=order,
            max_tokens=self.max_tokens,
            eos_token_ids=self.eos_token_ids,
            token_ids=token_ids,
            table=table,
        )
        sibling.num_cached_tokens = self.num_cached_tokens
        sibling.group = self.group
        sibling.task.num_candidates = self.task.num_candidates
        if self.task.matcher is not None:
            sibling.task.matcher = self.task.matcher.fork()
        sibling.admit()
        return sibling

    def append(self, token_id: int) -> bool:
        """Adds a drawn token; True if it ends the sequence, with finish_reason and stop_reason set."""
        known = self.token_ids
        known.append(token_id)
        return (token_id in self.telling_ids or len(known) >= self._num_tokens_to_check) and self._check(token_id)

    def expect(self) -> None:
        """Counts the token that a step in flight draws as known, which does not end the sequence by its number."""
        self.token_ids.append(NOT_YET_DRAWN)
        if len(self.token_ids) >= self._num_tokens_to_check:
            self._reach_minimum()

    def learn(self, token_id: int) -> bool:
        """Puts the token in the place of the expected one; as `append` says."""
        known = self.token_ids
        known[-1] = token_id
        return (token_id in self.telling_ids or len(known) >= self._num_tokens_to_check) and self._check(token_id)

    def forget_expected(self) -> None:
        """Takes the expected token back, if there is one: it will never be known."""
        if self.token_ids[-1] == NOT_YET_DRAWN:
            self.token_ids.pop()

    def admit(self) -> None:
        """Begins a stay among the running: its table has been started."""
        self.status = SequenceStatus.RUNNING
        self.line = ScheduledSequence(self.seq_id, (), self.table.num_computed, self.table.block_ids, None)
        self.quiet_below = 0

    def schedule(self, num_new: int) -> None:
        """Makes its line ask for the next num_new tokens, for which it has slots."""
        line = self.line
        start = line.num_computed_tokens
        line.token_ids = self.token_ids[start : start + num_new]
        if start + num_new < len(self.token_ids):
            line.sampling = None
            return
        line.sampling = self.task
        if num_new == 1 == len(self.task.seeds):
            self.quiet_below = min(self.table.num_writable, self._num_tokens_to_check - 1)

    def _check(self, token_id: int) -> bool:
        """What a token that may end the sequence does."""
        self._reach_minimum()
        num_output = self.num_output_tokens
        end: tuple[FinishReason, int | str | None] | None = self.end_by(token_id, num_output)
        if end is None and self._goes_round(num_output):
            end = "repetition", REPETITION_DETECTED
        if end is None:
            return False
        self.finish_reason, self.stop_reason = end
        return True

    def _reach_minimum(self) -> None:
        """Lets the next draw end it, once min_tokens are out."""
        if self.task.suppressed_token_ids and self.num_output_tokens >= self.params.min_tokens:
            self.task.suppressed_token_ids = ()
            self._num_tokens_to_check = self._first_to_check()

    def _first_to_check(self) -> int:
        """Known tokens from which on any may end it, min_tokens aside."""
        return len(self.prompt_token_ids) + (1 if self.params.repetition_detection else self.max_tokens)

    def _goes_round(self, num_output: int) -> bool:
        """Whether its output has come to repeat itself."""
        repetition = self.params.repetition_detection
        if not isinstance(repetition, RepetitionDetectionParams) or num_output < self.params.min_tokens:
            return False
        return repetition.found_in(self.token_ids, len(self.prompt_token_ids))

    def end_by(self, token_id: int, num_output: int) -> tuple[FinishReason, int | None] | None:
        """Finish and stop reason of a sample that ends with a token, its num_output-th; None where it goes on."""
        # A grammar lets only tokens end it early that nothing else could take the place of.
        if token_id in self.telling_ids and (num_output > self.params.min_tokens or self.task.matcher is not None):
            is_eos = token_id in self.eos_token_ids and not self.params.ignore_eos
            return "stop", None if is_eos else token_id
        return ("length", None) if num_output >= self.max_tokens else None


def sample_seed(seed: int, index: int) -> int:
    """The seed of a request's sample: seed + index, wrapped into 64 signed bits."""
    return (seed + index + _SEED_HALF) % _SEED_SPAN - _SEED_HALF
