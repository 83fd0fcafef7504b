"""Decides, step by step, which sequence computes how many tokens, and keeps the books of what came of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as TokenIds

from paged_backend.config import SchedulerConfig
from paged_backend.kv.manager import KVCacheManager
from paged_backend.outputs import FinishReason
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.beam_group import BeamGroup
from paged_backend.scheduler.beam_search import BeamText
from paged_backend.scheduler.in_flight import StepInFlight, commit_followed
from paged_backend.scheduler.limits import resolve_max_tokens
from paged_backend.scheduler.next_shares import next_shares, start_shares
from paged_backend.scheduler.plan import NOT_DRAWN, StepPlan, StepResult
from paged_backend.scheduler.preemption import Preemption
from paged_backend.scheduler.prompt_scoring import PromptScoring
from paged_backend.scheduler.roster import Roster
from paged_backend.scheduler.sequence import Sequence, SequenceStatus


class Scheduler:
    """One token budget, spent on the sequences whose computed tokens must catch up with their known tokens.

    A step is `plan`, then the executor, then `commit` with what it drew (or `fail`, where it raised).
    Everything else (`add`, `abort`, `finish_sequence`) comes between steps. One thread only.

    The next step may be planned before that commit, by `plan_ahead`, and is then in flight when the commit is over,
    as if `plan` had come right after it: what happens between steps happens beside it. It computes on for sequences
    that turn out to have ended; `strike` takes what it drew for them out of its result.

    Running sequences are kept in the policy's order (the fair policy's: of arrival). Each gets at least one token a
    step, and a longer chunk leaves one for each behind it, so a long prompt never holds up a decode. Where blocks run
    out, the last running sequence is preempted (the fair policy's: the youngest of the tenant that was served most):
    it gives its blocks back, keeps its tokens, and waits to be computed again, or for its blocks to come back from
    host memory, in front of all that came after it. One can therefore always go on, and every request ends. A
    waiting sequence is admitted only if all its known tokens and one more fit, while nobody who runs has more to
    compute than the step's tokens, in the queue's strict order: nobody overtakes. Under the priority policy an urgent
    arrival waits for blocks like everyone; it goes first when they come free, and it is preempted last. Who is less
    urgent may wait for as long as more urgent requests come.

    Args:
        config: budget, bounds and policy.
        kv: the block manager, of which this scheduler is the only user.
        max_model_len: most tokens of prompt plus output.
        eos_token_ids: the model's end tokens.
        scoring: what is to be told of prompts; None without a bound.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        kv: KVCacheManager,
        max_model_len: int,
        eos_token_ids: Iterable[int] = (),
        scoring: PromptScoring | None = None,
    ) -> None:
        self.config = config
        self.kv = kv
        self.max_model_len = max_model_len
        self._scoring = PromptScoring() if scoring is None else scoring
        self._roster = Roster(kv, config.scheduling_policy, eos_token_ids, self._scoring)
        self._preemption = Preemption(self._roster, kv, config.preemption_mode)
        self._steps: deque[StepInFlight] = deque()  # two at most, the second planned ahead

    # Questions

    @property
    def has_work(self) -> bool:
        """Whether `plan` would give something to do."""
        return bool(self._roster.running) or len(self._roster.waiting) > 0

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._roster.running)

    @property
    def num_waiting(self) -> int:
        """Sequences in the queue, preempted ones among them."""
        return len(self._roster.waiting)

    @property
    def num_waiting_tokens(self) -> int:
        """Known tokens of the sequences in the queue."""
        return self._roster.waiting.num_tokens

    @property
    def num_requests(self) -> int:
        """Requests that have not ended."""
        return self._roster.num_requests

    @property
    def num_preemptions(self) -> int:
        """Preemptions so far."""
        return self._preemption.num_preemptions

    @property
    def num_swaps(self) -> int:
        """Those of them that swapped blocks out."""
        return self._preemption.num_swaps

    def sequences(self, request_id: str) -> tuple[Sequence, ...]:
        """A request's sequences that have not ended; one stands for all n samples until their first token."""
        return self._roster.sequences(request_id)

    def check_fits(self, num_prompt_tokens: int, params: SamplingParams) -> int:
        """A request's max_tokens, resolved, if it can ever be served here; see `resolve_max_tokens`.

        Reads constants only, so any thread may ask.

        Raises:
            InvalidRequestError: the prompt, the output or n can never fit.
        """
        return resolve_max_tokens(
            num_prompt_tokens,
            params,
            max_num_seqs=self.config.max_num_seqs,
            max_model_len=self.max_model_len,
            pool=self.kv.shape,
        )

    # Between steps

    def add(
        self,
        request_id: str,
        prompt_token_ids: TokenIds[int],
        params: SamplingParams,
        *,
        seed: int,
        priority: int = 0,
        tenant: str = "",
        salt: str | None = None,
        text: BeamText | None = None,
    ) -> Sequence:
        """Queues a request.

        Args:
            request_id: unique among the requests that have not ended.
            seed: signed 64 bits; sample i draws with seed + i.
            priority: lower goes first under the priority policy; ignored under the others.
            tenant: with whom it shares its fair part under the fair policy; ignored under the others.
            salt: prefixes are shared with requests of the same salt only; None is a scope of its own.
            text: searches the beams of a search for stop strings; None without any.

        Returns:
            The sequence that stands for all samples or beams until their first token; it becomes the first of them.

        Raises:
            InvalidRequestError: see `check_fits`.
        """
        assert len(self._steps) < 2 and request_id not in self._roster, request_id
        max_tokens = self.check_fits(len(prompt_token_ids), params)
        return self._roster.enter(
            request_id,
            prompt_token_ids,
            params,
            max_tokens,
            seed=seed,
            priority=priority,
            tenant=tenant,
            salt=salt,
            text=text,
        )

    def abort(self, request_id: str) -> list[Sequence]:
        """Ends what is left of a request, with finish_reason "abort"; an empty list if nothing is."""
        ended = list(self.sequences(request_id))
        for sequence in ended:
            self.finish_sequence(sequence, "abort")
        return ended

    def finish_sequence(self, sequence: Sequence, reason: FinishReason, stop_reason: int | str | None = None) -> None:
        """Ends one sequence for a reason that its token ids do not tell: a stop string, an abort, a fault."""
        assert len(self._steps) < 2, "not while two steps are in flight"
        assert not sequence.finished, sequence
        if sequence.status is SequenceStatus.RUNNING and self._steps:
            self._steps[0].has_ended = True
        self._roster.take_out(sequence)
        sequence.finish_reason = reason
        sequence.stop_reason = stop_reason
        self._roster.end(sequence)

    # A step

    def plan(self) -> StepPlan:
        """Decides a step and takes its blocks. Empty only if there is no work."""
        assert not self._steps, "the last step was neither committed nor failed"
        running = self._roster.running
        allocate = self.kv.allocate
        num_preemptions = self.num_preemptions
        spare = self.config.max_num_batched_tokens - len(running)  # each gets one
        assert spare >= 0, "more running sequences than tokens in the budget"
        changing = [sequence for sequence in running if not sequence.quiet_below]
        self._scoring.begin_step()
        self._roster.waiting.follow(changing)
        for sequence in changing:
            if sequence.group is not None:
                if sequence is sequence.group.sequences[0]:
                    spare = self._schedule_group(sequence.group, spare)
                continue
            table = sequence.table
            num_missing = len(sequence.token_ids) - table.num_computed
            while sequence.status is SequenceStatus.RUNNING:
                num_new = self._scoring.at_most(sequence, min(num_missing, 1 + spare))
                if allocate(table, table.num_computed + num_new):
                    sequence.schedule(num_new)
                    spare -= num_new - 1
                    break
                # The last one gives way, be it this one; of its tokens, one may be spent again here.
                spare += self._preemption.preempt_last()
        if self.num_preemptions != num_preemptions:  # one that gave way may have had more than one token
            spare = self.config.max_num_batched_tokens - sum([len(sequence.line.token_ids) for sequence in running])
            return self._begin(running.copy(), spare)
        return self._begin(*self._admit(spare, running.copy(), changing))

    def plan_ahead(self) -> StepPlan | None:
        """Decides the step after the one in flight, whose tokens nobody has seen: NOT_YET_DRAWN stands for them.

        None, and nothing changes, where nobody would be in it, or where it cannot be known: a draw that needs to see
        the tokens before it, samples that part, a beam search, a prompt that is scored, or blocks that would have to be
        taken from somebody. Then the step in flight must be over first.
        """
        (step,) = self._steps
        running = self._roster.running
        # Of sequences that have ended since, too: as long as it looks at them, the step's tokens are the host's.
        if self._scoring or not step.plan.draws_unseen:
            return None
        shares = next_shares(running, self.config.max_num_batched_tokens, self.kv)
        if shares is None or not (shares.lasting or len(self._roster.waiting)):
            return None
        start_shares(shares, self.kv)
        spare = self.config.max_num_batched_tokens - shares.num_tokens
        lasting, spare = self._admit(spare, shares.lasting, shares.changing)
        if not lasting:
            return None
        step.leaving = shares.leaving
        plan = self._begin(lasting, spare)
        self._steps[1].changing = shares.changing
        return plan

    def strike(self, result: StepResult) -> tuple[StepResult, int]:
        """What is left of the oldest step's result without sequences that have ended since it was planned, and the
        number of tokens that it computed for others. Changes nothing; `commit` takes what it gives."""
        return self._steps[0].strike(result, is_followed=len(self._steps) > 1)

    def commit(self, result: StepResult) -> list[Sequence]:
        """Books the oldest step in flight, which was computed.

        Args:
            result: after `strike`, where anything was planned ahead.

        Returns:
            Whose each of the result's tokens is. Sequences that this ended are out of the scheduler, their blocks
            given back, with finish_reason and stop_reason set. The samples of an n > 1 request part in the step that
            computes its last prompt token: sample 0 is the sequence that `add` returned, the others appear here for
            the first time. A sequence for which nothing could be drawn stays as it was: the caller must end it with
            `finish_sequence` before the next plan. Candidates belong to the beam that they would continue; its group
            says when the search is over or has failed, and in the latter case the same holds for what is left of it.
        """
        assert self._steps, "commit without a plan"
        step = self._steps.popleft()
        self.kv.settle_transfers(done=True)
        self._scoring.settle(done=True)
        self._roster.waiting.end_step()
        self._preemption.costs.observe(step.plan, result)
        in_flight = step.sequences
        if step.has_ended:
            in_flight = [sequence for sequence in in_flight if not sequence.finished]
        if self._steps:
            return commit_followed(step, in_flight, self._steps[0], result.token_ids, self._roster, self.kv)
        token_ids = result.token_ids
        owners: list[Sequence] = []
        groups: dict[BeamGroup, dict[Sequence, int]] = {}
        ended = False
        for sequence in in_flight:
            known, line = sequence.token_ids, sequence.line
            num_known = len(known)
            if num_known < sequence.quiet_below and (token_id := token_ids[len(owners)]) not in sequence.telling_ids:
                line.num_computed_tokens = sequence.table.num_computed = num_known
                line.token_ids = (token_id,)
                known.append(token_id)
                owners.append(sequence)
                continue
            sequence.quiet_below = 0
            end = line.num_computed_tokens + len(line.token_ids)
            self.kv.commit(sequence.table, end)
            line.num_computed_tokens = end
            if sequence.group is not None:
                places = groups.setdefault(sequence.group, {})
                if line.sampling is not None:
                    places[sequence] = len(owners)
                    owners.extend([sequence] * line.sampling.num_candidates)
                continue
            if line.sampling is None:
                continue
            token_id = token_ids[len(owners)]
            if token_id == NOT_DRAWN:
                owners.extend([sequence] * sequence.num_samples)
                continue
            if len(line.sampling.seeds) > 1:
                family = self._roster.part_ways(sequence)
                ended |= self._take_first_tokens(family, token_ids[len(owners) : len(owners) + len(family)])
                owners.extend(family)
                continue
            owners.append(sequence)
            if sequence.append(token_id):
                self._roster.end(sequence)
                ended = True
        assert len(owners) == len(token_ids), "the result is another plan's"
        for group, places in groups.items():
            group.advance(places, result)
            ended = True
        if ended:
            self._roster.sweep()
        return owners

    def fail(self) -> list[Sequence]:
        """Drops the requests whose sequences were in the oldest plan, after the executor raised; others go on.

        Blocks that were computed before this step stay found by the prefix index; those that it may have half
        written are not in it.

        Returns:
            Their sequences that had not ended, now ended with finish_reason "error". A request may have
            samples that ended well in earlier steps; as a request it has failed.
        """
        assert self._steps, "fail without a plan"
        hit = self._steps.popleft().sequences
        self.kv.settle_transfers(done=False)
        self._scoring.settle(done=False)
        if self._steps and self._steps[0].plan.transfers.swap_ins:
            hit = hit + self._steps[0].sequences  # they may have loaded what this step was to store
        dropped: list[Sequence] = []
        for sequence in [sequence for sequence in hit if not sequence.finished]:
            for sibling in self.sequences(sequence.request_id):
                self.finish_sequence(sibling, "error")
                dropped.append(sibling)
        return dropped

    def check_invariants(self) -> None:
        """Asserts, between steps, that queue, running list, requests and blocks agree. For tests."""
        assert len(self._steps) <= 1
        running = self._roster.running
        assert sum(sequence.num_samples for sequence in running) <= self.config.max_num_seqs
        for sequence in running:
            self._check_line(sequence)
        planned = {}
        if self._steps:
            planned = {s.table: s.line.num_computed_tokens + len(s.line.token_ids) for s in running}
            assert set(running) == {sequence for sequence in self._steps[0].sequences if not sequence.finished}
        self._roster.check_invariants()
        self.kv.check_invariants(planned)

    def _check_line(self, sequence: Sequence) -> None:
        line, table, known = sequence.line, sequence.table, sequence.token_ids
        assert line.block_table is table.block_ids
        assert line.num_computed_tokens == table.num_computed < len(known), sequence
        if sequence.quiet_below:
            assert self._steps or list(line.token_ids) == known[table.num_computed :], sequence
            assert line.sampling is sequence.task, sequence
            assert len(line.token_ids) == 1 == sequence.num_samples and len(known) <= table.num_writable, sequence

    def _begin(self, in_flight: list[Sequence], spare: int) -> StepPlan:
        """Makes a plan of what the sequences' lines say."""
        assert in_flight or not self.has_work, "a step without progress"
        lines = tuple([sequence.line for sequence in in_flight])
        num_tokens = self.config.max_num_batched_tokens - spare
        scoring = self._scoring.plan(in_flight) if self._scoring else ()
        plan = StepPlan(lines, self.kv.take_copies(), num_tokens, self.kv.take_transfers(), scoring)
        self._steps.append(StepInFlight(plan, in_flight))
        return plan

    def _admit(self, budget: int, in_flight: list[Sequence], changing: list[Sequence]) -> tuple[list[Sequence], int]:
        """Starts waiting sequences, in order, until one does not fit, or has more to compute than this step's tokens.

        Args:
            changing: of those in flight, the ones that may have more to compute already.

        Returns:
            Who is in flight then, and what is left of the budget.
        """
        kv, waiting, running = self.kv, self._roster.waiting, self._roster.running
        max_num_seqs = self.config.max_num_seqs
        if not len(waiting) or len(running) >= max_num_seqs:
            return in_flight, budget
        if not all(sequence.line.sampling is not None or sequence in self._scoring for sequence in changing):
            return in_flight, budget
        num_samples = sum([sequence.num_samples for sequence in running])
        while budget > 0 and len(waiting):
            sequence = waiting.peek()
            if num_samples + sequence.num_samples > max_num_seqs:
                break
            table = sequence.table
            prefix = kv.cached_prefix(table)
            # None of the free blocks is spoken for, but by prompts that are scored: nobody else has tokens left to
            # compute after this step.
            num_free = kv.num_free_blocks - (self._scoring.num_missing_blocks(kv) if self._scoring else 0)
            num_wanted = min(len(table.token_ids) + 1, sequence.max_cached_tokens)
            if kv.missing_to_start(prefix, num_wanted) + sequence.num_extra_blocks > num_free:
                break
            waiting.pop()
            is_new = sequence.num_preemptions == 0
            kv.start(table, prefix, count=is_new)
            if is_new:
                sequence.num_cached_tokens = table.num_computed
                waiting.book_prompt(sequence)
            self._scoring.started(sequence)
            num_new = self._scoring.at_most(sequence, min(len(table.token_ids) - table.num_computed, budget))
            fits = kv.allocate(table, table.num_computed + num_new)
            assert fits, "admitted without room"
            sequence.admit()
            sequence.schedule(num_new)
            sequence.quiet_below = 0  # `commit` indexes what comes back from host memory, and `follow` is to see it
            self._roster.run(sequence)
            in_flight.append(sequence)
            budget -= num_new
            num_samples += sequence.num_samples
            if sequence.line.sampling is None and sequence not in self._scoring:
                break
        return in_flight, budget

    def _schedule_group(self, group: BeamGroup, spare: int) -> int:
        """As many tokens of each of a search's sequences, or none where blocks run out; what is left of the budget."""
        family = group.sequences
        while family[0].status is SequenceStatus.RUNNING:
            num_new = self._scoring.at_most(family[0], min(group.num_missing, 1 + spare // len(family)))
            if all(self.kv.allocate(s.table, s.table.num_computed + num_new) for s in family):
                for sequence in family:
                    sequence.schedule(num_new)
                return spare - (num_new - 1) * len(family)
            spare += self._preemption.preempt_last()
        return spare

    def _take_first_tokens(self, family: list[Sequence], token_ids: TokenIds[int]) -> bool:
        """Gives each sample the token that it drew; whether that ended any."""
        for sequence, token_id in zip(family, token_ids, strict=True):
            if sequence.append(token_id):
                self._roster.end(sequence)
        return any(sequence.finished for sequence in family)
