"""A scheduler with its blocks over a simulated cache, and whatever may happen to it, compared and checked each time."""

from __future__ import annotations

from dataclasses import dataclass

from paged_backend.config import SchedulerConfig
from paged_backend.errors import InvalidRequestError
from paged_backend.kv.layer_group import NO_BLOCK, LayerGroup
from paged_backend.kv.manager import KVCacheManager
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import NOT_DRAWN, StepPlan, StepResult
from paged_backend.scheduler.prompt_scoring import PromptScoring
from paged_backend.scheduler.scheduler import Scheduler
from paged_backend.scheduler.sequence import Sequence, SequenceStatus
from tests.property.known_requests import MAX_MODEL_LEN, Request, Sample
from tests.property.simulated_executor import EOS, Known, SimulatedExecutor, run_alone, score_alone, search_alone


@dataclass(frozen=True)
class Shape:
    """What a life is led in.

    Attributes:
        windows: of each group of layers; 0 sees all.
        num_blocks, num_host_slots: for each group.
        spare_budget: tokens of a step beyond one for each sequence.
        max_scored: tokens of prompts that a step scores.
    """

    num_blocks: int
    block_size: int
    max_num_seqs: int
    spare_budget: int
    policy: str = "fcfs"
    caching: bool = True
    windows: tuple[int, ...] = (0,)
    num_host_slots: int = 0
    preemption_mode: str = "recompute"
    max_scored: int = 1


class SchedulerLife:
    """Scheduler, block manager, prefix index and tiers; everything that it does is compared with what was asked for."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.windows = shape.windows
        self.max_chunk = shape.max_num_seqs + shape.spare_budget
        self.num_host_slots = shape.num_host_slots * len(shape.windows)
        self.config = SchedulerConfig(
            max_num_seqs=shape.max_num_seqs,
            max_num_batched_tokens=self.max_chunk,
            scheduling_policy=shape.policy,
            preemption_mode=shape.preemption_mode,
        )
        self.requests: dict[str, Request] = {}
        self.by_seq_id: dict[int, Sample] = {}
        self.sequences: dict[int, Sequence] = {}
        self.num_steps = 0
        self.begin()

    def begin(self) -> None:
        """A new engine: nothing is in memory."""
        shape, num_groups = self.shape, len(self.windows)
        self.kv = KVCacheManager(
            shape.num_blocks * num_groups,
            shape.block_size,
            shape.caching,
            groups=[LayerGroup(window, shape.block_size, self.max_chunk) for window in self.windows],
            key=b"test",
            num_host_slots=self.num_host_slots,
            keeps_on_disk=shape.caching and self.num_host_slots > 0,
        )
        self.scheduler = Scheduler(self.config, self.kv, MAX_MODEL_LEN, {EOS}, PromptScoring(shape.max_scored))
        self.executor = SimulatedExecutor(
            self.kv.num_blocks, shape.block_size, self.known, self.windows, self.num_host_slots
        )
        self.by_seq_id.clear()
        self.sequences.clear()

    # What the test knows

    def live(self) -> list[Request]:
        return [request for request in self.requests.values() if request.live]

    def beams(self, request: Request) -> tuple[Sequence, ...]:
        """The sequences of a beam search, which come and go."""
        return self.scheduler.sequences(request.request_id) if request.searches else ()

    def runs(self, request: Request) -> bool:
        """Whether one of a request's sequences holds blocks."""
        siblings = self.scheduler.sequences(request.request_id)
        return any(sequence.status is SequenceStatus.RUNNING for sequence in siblings)

    def request_of(self, seq_id: int) -> Request:
        if seq_id in self.by_seq_id:
            return self.by_seq_id[seq_id].request
        (request,) = (r for r in self.live() if any(s.seq_id == seq_id for s in self.beams(r)))
        return request

    def known(self, seq_id: int) -> Known:
        if seq_id not in self.by_seq_id:
            request = self.request_of(seq_id)
            (sequence,) = (s for s in self.beams(request) if s.seq_id == seq_id)
            return Known(tuple(sequence.token_ids), request.salt)
        sample = self.by_seq_id[seq_id]
        return Known((*sample.request.prompt, *sample.output), sample.request.salt)

    def alone(self, sample: Sample) -> tuple[tuple[int, ...], str, int | None]:
        request = sample.request
        seed = request.seed + sample.index
        if seed >= 2**63:
            seed -= 2**64
        return run_alone(request.prompt, request.params, seed, request.max_tokens)

    def most_in_use(self, window: int, num_tokens: int) -> int:
        """Blocks that a group holds at most of a sequence alone: whole steps, wherever in a block they begin."""
        size, most = self.kv.block_size, 0
        whole = -(-num_tokens // size)
        for begin in range(size):
            seen = begin + (window - 1 + self.max_chunk if window else num_tokens)
            most = max(most, min(whole, -(-seen // size)))
        return most if window else whole

    def most_tokens(self, width: int = 1, num_prompt: int = 0) -> int:
        """Tokens of the longest sequence that the pool can hold, as far as a model goes, or of each of several beams.

        All that beams are sure to share are their prompt's full blocks, where no window leaves them behind.
        """
        shared = num_prompt // self.kv.block_size
        fits = (
            num_tokens
            for num_tokens in range(MAX_MODEL_LEN, -1, -1)
            if sum(
                width * self.most_in_use(window, num_tokens) - (0 if window else (width - 1) * shared)
                for window in self.windows
            )
            <= self.kv.num_blocks
        )
        return next(fits)

    # What happens

    def submit(
        self,
        prompt: tuple[int, ...],
        params: SamplingParams,
        *,
        seed: int,
        salt: str | None,
        priority: int,
        tenant: str,
    ) -> None:
        """A request, which is refused if it can never fit, and only then."""
        length, width = len(prompt), params.num_sequences
        room = min(MAX_MODEL_LEN, self.most_tokens(width if params.use_beam_search else 1, length) + 1) - length
        wanted = room if params.max_tokens is None else min(params.max_tokens, MAX_MODEL_LEN - length)
        fits = width <= self.config.max_num_seqs and room >= 1 and wanted <= room and params.min_tokens <= wanted
        request_id = f"r{len(self.requests)}"
        try:
            sequence = self.scheduler.add(
                request_id, prompt, params, seed=seed, salt=salt, priority=priority, tenant=tenant
            )
        except InvalidRequestError as error:
            assert not fits and error.param in ("n", "best_of", "prompt", "max_tokens", "min_tokens")
            return
        assert fits
        request = Request(request_id, prompt, params, seed, salt, wanted, since=self.num_steps)
        request.order = (priority if self.config.scheduling_policy == "priority" else 0, len(self.requests))
        request.beside = frozenset(r.request_id for r in self.live() if self.runs(r))
        request.samples = [Sample(request, index) for index in range(params.n)]
        self.requests[request_id] = request
        if not request.searches:
            self.by_seq_id[sequence.seq_id] = request.samples[0]
            self.sequences[sequence.seq_id] = sequence

    def plan(self) -> StepPlan:
        """The next step's, which makes progress within its bounds."""
        self.num_steps += 1
        plan = self.scheduler.plan()
        assert plan.sequences, "a step without progress"
        assert plan.num_tokens == sum(len(line.token_ids) for line in plan.sequences)
        assert plan.num_tokens <= self.config.max_num_batched_tokens
        assert len(plan.sequences) == self.scheduler.num_running <= self.config.max_num_seqs
        in_chunks = {self.request_of(line.seq_id).request_id for line in plan.sequences if line.sampling is None}
        scored = {task.request_id for task in plan.scoring}
        assert len(in_chunks - scored) <= 1, "free blocks are spoken for twice"
        num_scored = sum(len(task.token_ids) for task in plan.scoring)
        assert num_scored < self.shape.max_scored + max(1, len(plan.scoring))
        return plan

    def step(self) -> None:
        """A step that goes well."""
        plan = self.plan()
        result = self.executor.run(plan)
        self.note_scores(plan, result)
        for sequence, token_id in zip(self.scheduler.commit(result), result.token_ids, strict=True):
            self.book(sequence, token_id)

    def failing_step(self, *, moved: bool) -> None:
        """A step that raises, before or after it has moved blocks."""
        plan = self.plan()
        self.executor.break_off(plan, moved=moved)
        hit = {self.request_of(line.seq_id).request_id for line in plan.sequences}
        dropped = self.scheduler.fail()
        assert {sequence.request_id for sequence in dropped} == hit
        assert all(sequence.finish_reason == "error" for sequence in dropped)
        for request_id in hit:
            self.requests[request_id].end("error")

    def step_without(self, plan: StepPlan, seq_id: int) -> None:
        """Runs a step in which nothing can be drawn for one of its sequences."""
        # The fault may come after its siblings got tokens in the same step: each has had its say by then.
        result = self.executor.run(plan, undrawable=seq_id)
        self.note_scores(plan, result)
        owners = self.scheduler.commit(result)
        for sequence, token_id in sorted(zip(owners, result.token_ids, strict=True), key=lambda pair: -pair[1]):
            self.book(sequence, token_id)

    def note_scores(self, plan: StepPlan, result: StepResult) -> None:
        """What is told of prompts, each token once and in order."""
        for task, tokens in zip(plan.scoring, result.scored, strict=True):
            request = self.requests[task.request_id]
            assert request.params.prompt_logprobs == task.num_logprobs
            request.scored += [(token.token_id, token.logprob) for token in tokens]

    def abort(self, request: Request) -> None:
        """A client leaves."""
        expected = [s for s in request.samples if s.ended is None] if request.parted else request.samples[:1]
        beams = self.beams(request)
        ended = self.scheduler.abort(request.request_id)
        indexes = [beam.index for beam in beams] or [sample.index for sample in expected]
        assert [sequence.index for sequence in ended] == indexes
        assert all(sequence.finished and sequence.finish_reason == "abort" for sequence in ended)
        request.end("abort")
        assert self.scheduler.abort(request.request_id) == []

    def stoppable(self) -> list[Sample]:
        """Samples whose text there is to find a stop string in."""
        return [s for request in self.live() if request.parted for s in request.samples if s.ended is None]

    def stop_string(self, sample: Sample) -> None:
        """Its text says that it ends."""
        (sequence,) = (s for s in self.scheduler.sequences(sample.request.request_id) if s.index == sample.index)
        self.scheduler.finish_sequence(sequence, "stop", "the end")
        assert (sequence.finish_reason, sequence.stop_reason) == ("stop", "the end")
        sample.ended = "stop"

    def read_from_disk(self, request: Request, num_lost: int = 0) -> int:
        """What a request's prefix lacks comes from disk to host memory, but for the last few blocks; says how many."""
        offload = self.kv.offload
        assert offload is not None
        keys = self.kv.missing_prefix(request.prompt, request.salt, self.executor.disk.__contains__)
        slots = offload.reserve(len(keys))
        self.scheduler.check_invariants()
        keys = keys[: max(len(slots) - num_lost, 0)]
        for slot, key in zip(slots, keys, strict=False):
            self.executor.slots[slot] = list(self.executor.disk[key])
        offload.fill(slots, keys)
        assert all(offload.host.find(key) is not None for key in keys)
        return len(keys)

    def restart(self, *, orderly: bool = True) -> None:
        """Requests and memory are lost, what is on disk stays; in good order all that can be found is brought there."""
        for request in self.live():
            self.abort(request)
        if orderly:
            for block, key in self.kv.indexed_blocks():
                self.executor.disk[key] = list(self.executor.cells[block])
        disk = self.executor.disk
        self.begin()
        self.executor.disk = disk

    def ask(self) -> None:
        """Questions change nothing."""
        before = (self.kv.pool.free_blocks(), list(self.kv.pool.ref_counts), self.kv.stats())
        for sequence in self.sequences.values():
            self.kv.cached_prefix(sequence.table)
        for request in self.requests.values():
            self.kv.lookup(request.prompt, request.salt)
            self.kv.missing_prefix(request.prompt, request.salt, self.executor.disk.__contains__)
            self.scheduler.check_fits(len(request.prompt), request.params)
        assert before == (self.kv.pool.free_blocks(), list(self.kv.pool.ref_counts), self.kv.stats())

    # What is told of a step

    def book(self, sequence: Sequence, token_id: int) -> None:
        """A token of a sample, or a candidate of a search."""
        request = self.requests[sequence.request_id]
        assert request.scored == score_alone(request.prompt, request.params)
        if sequence.group is not None:
            return self.book_search(request, sequence)
        if token_id == NOT_DRAWN:
            return self.end_by_fault(request)
        if sequence.seq_id not in self.by_seq_id:
            self.by_seq_id[sequence.seq_id] = request.samples[sequence.index]
            self.sequences[sequence.seq_id] = sequence
        sample = self.by_seq_id[sequence.seq_id]
        assert sample.ended is None, "an event after the end"
        sample.output.append(token_id)
        assert sequence.output_token_ids == sample.output
        tokens, reason, stop_reason = self.alone(sample)
        if sequence.finished:
            sample.ended = sequence.finish_reason
            assert (tuple(sample.output), sequence.finish_reason) == (tokens, reason)
            assert sequence.stop_reason == stop_reason
        else:
            assert tuple(sample.output) == tokens[: len(sample.output)] and len(sample.output) < len(tokens)
        return None

    def book_search(self, request: Request, sequence: Sequence) -> None:
        """A search that is over has found what it would alone."""
        group = sequence.group
        assert group is not None
        if group.failed:
            self.end_by_fault(request)
        elif group.search.over and request.live:
            found = [(tuple(beam.token_ids), beam.finish_reason, beam.stop_reason) for beam in group.best]
            assert found == search_alone(request.prompt, request.params, request.max_tokens)
            for sample, (tokens, reason, _) in zip(request.samples, found, strict=True):
                sample.output, sample.ended = list(tokens), reason

    def end_by_fault(self, request: Request) -> None:
        """Ends what is left of a request for which nothing could be drawn, as the engine does."""
        for sibling in self.scheduler.sequences(request.request_id):
            self.scheduler.finish_sequence(sibling, "error")
        request.end("error")

    # What holds between steps

    def check(self) -> None:
        """All books agree with each other, with the cache, and with what is known here."""
        self.scheduler.check_invariants()
        self.check_windows()
        live = {request.request_id for request in self.live()}
        assert self.scheduler.num_requests == len(live)
        assert self.scheduler.has_work == bool(live)
        self.check_waste()
        self.check_index()
        self.check_patience()

    def check_waste(self) -> None:
        """Empty slots, counted one by one."""
        size, num_groups = self.kv.block_size, len(self.windows)
        filled: set[tuple[int, int]] = set()
        held: set[int] = set()
        beams = [sequence for request in self.live() for sequence in self.beams(request)]
        for sequence in (*self.sequences.values(), *beams):
            held.update(sequence.table.block_ids)
            for position in range(sequence.num_computed_tokens):
                blocks = sequence.table.block_ids[position // size * num_groups :][:num_groups]
                filled.update((block, position % size) for block in blocks if block != NO_BLOCK)
        held.discard(NO_BLOCK)
        stats = self.kv.stats()
        assert stats.num_used_blocks == len(held)
        assert self.kv.num_empty_slots() == len(held) * size - len(filled)

    def check_windows(self) -> None:
        """Between steps a sequence holds of a group what the next token sees, and at most a block more."""
        size = self.kv.block_size
        for sequence in self.sequences.values():
            for group, window in enumerate(self.windows):
                blocks = sequence.table.block_ids[group :: len(self.windows)]
                held = sum(block != NO_BLOCK for block in blocks)
                next_position = sequence.num_computed_tokens
                seen = range(max(0, next_position - window + 1) // size if window else 0, len(blocks))
                assert all(blocks[i] != NO_BLOCK for i in seen)
                assert held <= len(seen) + (window != 0)

    def check_index(self) -> None:
        """What is found for a request's tokens is what was computed of them, in its own scope."""
        for request in self.requests.values():
            self.executor.check_pool(self.kv, request.prompt, request.salt)
            self.executor.check_host(self.kv, request.prompt, request.salt)

    def most_steps(self, request: Request, until: int) -> int:
        """What each policy promises a request that came in `since` and has not ended by `until`, whoever else comes.

        FCFS: it ends when all that came before it have had the steps that they need alone. Priority: so it is for
        those of its own and of more urgent priorities, whenever they come; beside them it waits only for those that ran
        when it came. One that comes in front of it may cost others their blocks, and they begin again. Fair: every step
        draws a token, but for those that compute the one prompt that is in chunks.
        """
        rivals = [
            other
            for other in self.requests.values()
            if other.since <= until and (other.until is None or other.until >= request.since)
        ]
        if self.config.scheduling_policy == "fair":
            num_draws = sum(other.params.num_sequences * other.max_tokens for other in rivals)
            return (num_draws + 1) * (MAX_MODEL_LEN + 1)
        rivals = [r for r in rivals if r.order <= request.order or r.request_id in request.beside]
        num_overtakers = sum(1 for other in rivals if other.order < request.order and other.since > request.since)
        return (1 + num_overtakers) * sum(other.num_steps_alone for other in rivals)

    def check_patience(self) -> None:
        """Nobody waits for longer than is promised."""
        for request in self.requests.values():
            if request.until is None:
                assert self.num_steps - request.since <= self.most_steps(request, self.num_steps), request
                if not request.live:
                    request.until = self.num_steps

    def drain(self) -> None:
        """Everything that was accepted ends, in a bounded number of steps, and nothing is left behind."""
        live = [sample for request in self.live() for sample in request.samples if sample.ended is None]
        work = sum(len(sample.request.prompt) + sample.request.max_tokens for sample in live)
        for _ in range(work * (len(live) + 1)):
            if not self.scheduler.has_work:
                break
            self.step()
            self.scheduler.check_invariants()
            self.check_patience()
        assert not self.scheduler.has_work, "requests that never end"
        for request in self.requests.values():
            for sample in request.samples:
                assert sample.ended is not None
                if request.searches:
                    continue
                tokens, _, _ = self.alone(sample)
                if sample.ended in ("stop", "length"):
                    assert tuple(sample.output) == tokens[: len(sample.output)]
        assert self.kv.num_free_blocks == self.kv.num_blocks
        assert self.kv.stats().offload.num_swapped == 0
        assert self.scheduler.num_running == self.scheduler.num_waiting == self.scheduler.num_requests == 0
