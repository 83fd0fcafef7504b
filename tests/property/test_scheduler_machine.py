"""Random lives of random requests over a tiny cache: every block, every token and every end is checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from paged_backend.config import SchedulerConfig
from paged_backend.errors import InvalidRequestError
from paged_backend.kv.layer_group import NO_BLOCK, LayerGroup
from paged_backend.kv.manager import KVCacheManager
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import NOT_DRAWN
from paged_backend.scheduler.scheduler import Scheduler
from paged_backend.scheduler.sequence import Sequence
from tests.property.known_requests import MAX_MODEL_LEN, TEXTS, Request, Sample
from tests.property.simulated_executor import (
    EOS,
    VOCAB_SIZE,
    Known,
    SimulatedExecutor,
    run_alone,
    search_alone,
)


class SchedulerMachine(RuleBasedStateMachine):
    """Scheduler, block manager and prefix index against a simulated cache."""

    @initialize(
        num_blocks=st.integers(2, 14),
        block_size=st.integers(1, 5),
        max_num_seqs=st.integers(1, 6),
        spare_budget=st.integers(0, 20),
        policy=st.sampled_from(["fcfs", "priority", "fair"]),
        caching=st.booleans() | st.just(True),
        windows=st.just([0]) | st.lists(st.just(0) | st.integers(2, 12), min_size=1, max_size=3),
        num_host_slots=st.sampled_from([0, 0, 1, 2, 5, 30]),
        preemption_mode=st.sampled_from(["recompute", "swap", "swap"]),
    )
    def build(
        self,
        num_blocks: int,
        block_size: int,
        max_num_seqs: int,
        spare_budget: int,
        policy: str,
        caching: bool,
        windows: list[int],
        num_host_slots: int,
        preemption_mode: str,
    ) -> None:
        num_blocks *= len(windows)
        self.windows = windows
        self.max_chunk = max_num_seqs + spare_budget
        self.caching = caching
        self.num_host_slots = num_host_slots * len(windows)
        self.kv = self.new_manager(num_blocks, block_size)
        self.config = SchedulerConfig(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=self.max_chunk,
            scheduling_policy=policy,
            preemption_mode=preemption_mode,
        )
        self.scheduler = Scheduler(self.config, self.kv, MAX_MODEL_LEN, {EOS})
        self.executor = self.new_executor()
        self.requests: dict[str, Request] = {}
        self.by_seq_id: dict[int, Sample] = {}
        self.sequences: dict[int, Sequence] = {}

    def new_manager(self, num_blocks: int, block_size: int) -> KVCacheManager:
        return KVCacheManager(
            num_blocks,
            block_size,
            self.caching,
            groups=[LayerGroup(window, block_size, self.max_chunk) for window in self.windows],
            key=b"test",
            num_host_slots=self.num_host_slots,
            keeps_on_disk=self.caching and self.num_host_slots > 0,
        )

    def new_executor(self) -> SimulatedExecutor:
        kv = self.kv
        return SimulatedExecutor(kv.num_blocks, kv.block_size, self.known, self.windows, self.num_host_slots)

    def beams(self, request: Request) -> tuple[Sequence, ...]:
        """The sequences of a beam search, which come and go."""
        return self.scheduler.sequences(request.request_id) if request.searches else ()

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

    @rule(
        text=st.sampled_from(TEXTS),
        length=st.integers(1, MAX_MODEL_LEN),
        n=st.sampled_from([1, 1, 1, 2, 3, 4]),
        max_tokens=st.none() | st.integers(1, 12),
        min_tokens=st.integers(0, 4),
        ignore_eos=st.booleans(),
        stops=st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=1),
        seed=st.integers(0, 3) | st.just(2**63 - 1),
        salt=st.sampled_from([None, None, "", "tenant"]),
        priority=st.integers(-1, 1),
        search=st.none()
        | st.none()
        | st.tuples(st.sampled_from([0.6, 1, 2, -1]), st.sampled_from([False, True, "never"])),
        best_of=st.integers(0, 2),
        tenant=st.sampled_from(["", "a", "b"]),
    )
    def submit(
        self,
        text: tuple[int, ...],
        length: int,
        n: int,
        max_tokens: int | None,
        min_tokens: int,
        ignore_eos: bool,
        stops: list[int],
        seed: int,
        salt: str | None,
        priority: int,
        search: tuple[float, Any] | None,
        best_of: int,
        tenant: str,
    ) -> None:
        if max_tokens is not None:
            min_tokens = min(min_tokens, max_tokens)
        params = SamplingParams(
            n=n, max_tokens=max_tokens, min_tokens=min_tokens, ignore_eos=ignore_eos, stop_token_ids=stops
        )
        width = 1
        if search is not None:
            width = n + best_of
            params = replace(
                params, use_beam_search=True, best_of=width, length_penalty=search[0], early_stopping=search[1]
            )
        prompt = text[:length]
        room = min(MAX_MODEL_LEN, self.most_tokens(width, length) + 1) - length
        wanted = room if max_tokens is None else min(max_tokens, MAX_MODEL_LEN - length)
        fits = max(n, width) <= self.config.max_num_seqs and room >= 1 and wanted <= room and min_tokens <= wanted
        request_id = f"r{len(self.requests)}"
        try:
            sequence = self.scheduler.add(
                request_id, prompt, params, seed=seed, salt=salt, priority=priority, tenant=tenant
            )
        except InvalidRequestError as error:
            assert not fits and error.param in ("n", "best_of", "prompt", "max_tokens", "min_tokens")
            return
        assert fits
        request = Request(request_id, prompt, params, seed, salt, wanted)
        request.samples = [Sample(request, index) for index in range(n)]
        self.requests[request_id] = request
        if search is not None:
            return
        self.by_seq_id[sequence.seq_id] = request.samples[0]
        self.sequences[sequence.seq_id] = sequence

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

    @rule(count=st.integers(1, 8))
    def step(self, count: int) -> None:
        for _ in range(count):
            if self.scheduler.has_work:
                self.one_step()

    def one_step(self) -> None:
        plan = self.scheduler.plan()
        assert plan.sequences, "a step without progress"
        assert plan.num_tokens == sum(len(line.token_ids) for line in plan.sequences)
        assert plan.num_tokens <= self.config.max_num_batched_tokens
        assert len(plan.sequences) == self.scheduler.num_running <= self.config.max_num_seqs
        result = self.executor.run(plan)
        for sequence, token_id in zip(self.scheduler.commit(result), result.token_ids, strict=True):
            self.book(sequence, token_id)

    def book_search(self, request: Request, sequence: Sequence) -> None:
        group = sequence.group
        assert group is not None
        if group.failed:
            for sibling in self.scheduler.sequences(request.request_id):
                self.scheduler.finish_sequence(sibling, "error")
            for sample in request.samples:
                sample.ended = sample.ended or "error"
        elif group.search.over and request.live:
            found = [(tuple(beam.token_ids), beam.finish_reason, beam.stop_reason) for beam in group.best]
            assert found == search_alone(request.prompt, request.params, request.max_tokens)
            for sample, (tokens, reason, _) in zip(request.samples, found, strict=True):
                sample.output, sample.ended = list(tokens), reason

    def book(self, sequence: Sequence, token_id: int) -> None:
        if sequence.group is not None:
            return self.book_search(self.requests[sequence.request_id], sequence)
        if token_id == NOT_DRAWN:
            request = self.requests[sequence.request_id]
            for sibling in self.scheduler.sequences(sequence.request_id):
                self.scheduler.finish_sequence(sibling, "error")
            for sample in request.samples:
                sample.ended = sample.ended or "error"
            return None
        if sequence.seq_id not in self.by_seq_id:
            self.by_seq_id[sequence.seq_id] = self.requests[sequence.request_id].samples[sequence.index]
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

    def alone(self, sample: Sample) -> tuple[tuple[int, ...], str, int | None]:
        request = sample.request
        seed = request.seed + sample.index
        if seed >= 2**63:
            seed -= 2**64
        return run_alone(request.prompt, request.params, seed, request.max_tokens)

    def live(self) -> list[Request]:
        return [request for request in self.requests.values() if request.live]

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.live()), label="request")
        expected = [s for s in request.samples if s.ended is None] if request.parted else request.samples[:1]
        beams = self.beams(request)
        ended = self.scheduler.abort(request.request_id)
        indexes = [beam.index for beam in beams] or [sample.index for sample in expected]
        assert [sequence.index for sequence in ended] == indexes
        assert all(sequence.finished and sequence.finish_reason == "abort" for sequence in ended)
        for sample in request.samples:
            sample.ended = sample.ended or "abort"
        assert self.scheduler.abort(request.request_id) == []

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def stop_string(self, data: st.DataObject) -> None:
        candidates = [s for r in self.live() if r.parted for s in r.samples if s.ended is None]
        if not candidates:
            return
        sample = data.draw(st.sampled_from(candidates), label="sample")
        (sequence,) = (s for s in self.scheduler.sequences(sample.request.request_id) if s.index == sample.index)
        self.scheduler.finish_sequence(sequence, "stop", "the end")
        assert (sequence.finish_reason, sequence.stop_reason) == ("stop", "the end")
        sample.ended = "stop"

    @precondition(lambda self: self.scheduler.has_work)
    @rule(luck=st.integers(0, 3), moved=st.booleans())
    def failing_step(self, luck: int, moved: bool) -> None:
        if luck:  # a fault ends all that runs, so too many of them leave little to test
            return self.one_step()
        plan = self.scheduler.plan()
        self.executor.break_off(plan, moved=moved)
        hit = {self.request_of(s.seq_id).request_id for s in plan.sequences}
        dropped = self.scheduler.fail()
        assert {sequence.request_id for sequence in dropped} == hit
        assert all(sequence.finish_reason == "error" for sequence in dropped)
        for request_id in hit:
            for sample in self.requests[request_id].samples:
                sample.ended = sample.ended or "error"
        return None

    @precondition(lambda self: self.scheduler.has_work)
    @rule(data=st.data())
    def step_with_a_sequence_that_cannot_be_drawn(self, data: st.DataObject) -> None:
        plan = self.scheduler.plan()
        seq_id = data.draw(st.sampled_from([s.seq_id for s in plan.sequences]), label="undrawable")
        # The fault may come after its siblings got tokens in the same step: each has had its say by then.
        result = self.executor.run(plan, undrawable=seq_id)
        owners = self.scheduler.commit(result)
        for sequence, token_id in sorted(zip(owners, result.token_ids, strict=True), key=lambda pair: -pair[1]):
            self.book(sequence, token_id)

    @precondition(lambda self: self.kv.offload is not None and self.requests)
    @rule(data=st.data(), num_lost=st.integers(0, 2))
    def read_from_disk(self, data: st.DataObject, num_lost: int) -> None:
        """What a request's prefix lacks comes from disk into host memory, but for the last few blocks."""
        offload = self.kv.offload
        assert offload is not None
        request = data.draw(st.sampled_from(list(self.requests.values())), label="request")
        keys = self.kv.missing_prefix(request.prompt, request.salt, self.executor.disk.__contains__)
        slots = offload.reserve(len(keys))
        self.scheduler.check_invariants()
        keys = keys[: max(len(slots) - num_lost, 0)]
        for slot, key in zip(slots, keys, strict=False):
            self.executor.slots[slot] = list(self.executor.disk[key])
        offload.fill(slots, keys)

    @precondition(lambda self: not self.live())
    @rule()
    def restart(self) -> None:
        """All memory is lost, and what is on disk stays."""
        for block, key in self.kv.indexed_blocks():
            self.executor.disk[key] = list(self.executor.cells[block])
        disk = self.executor.disk
        self.kv = self.new_manager(self.kv.num_blocks, self.kv.block_size)
        self.scheduler = Scheduler(self.config, self.kv, MAX_MODEL_LEN, {EOS})
        self.executor = self.new_executor()
        self.executor.disk = disk
        self.by_seq_id.clear()
        self.sequences.clear()

    @precondition(lambda self: self.scheduler.has_work)
    @rule()
    def questions(self) -> None:
        before = (self.kv.pool.free_blocks(), list(self.kv.pool.ref_counts), self.kv.stats())
        for sequence in self.sequences.values():
            self.kv.cached_prefix(sequence.table)
        for request in self.requests.values():
            self.kv.lookup(request.prompt, request.salt)
            self.kv.missing_prefix(request.prompt, request.salt, self.executor.disk.__contains__)
            self.scheduler.check_fits(len(request.prompt), request.params)
        assert before == (self.kv.pool.free_blocks(), list(self.kv.pool.ref_counts), self.kv.stats())

    @invariant()
    def books_agree(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        self.scheduler.check_invariants()
        self.check_windows()
        live = {request.request_id for request in self.live()}
        assert self.scheduler.num_requests == len(live)
        assert self.scheduler.has_work == bool(live)
        self.check_waste()
        self.check_index()

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

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        live = [sample for request in self.live() for sample in request.samples if sample.ended is None]
        work = sum(len(sample.request.prompt) + sample.request.max_tokens for sample in live)
        for _ in range(work * (len(live) + 1)):
            if not self.scheduler.has_work:
                break
            self.one_step()
            self.scheduler.check_invariants()
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


_QUICK = settings(max_examples=120, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
_LONG = settings(_QUICK, max_examples=1500, stateful_step_count=60)


def test_random_lives() -> None:
    run_state_machine_as_test(SchedulerMachine, settings=_QUICK)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_random_lives_for_long() -> None:
    run_state_machine_as_test(SchedulerMachine, settings=_LONG)
