"""All sequences that have not ended: whose they are, which of them wait and which run."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from collections.abc import Sequence as TokenIds
from operator import attrgetter

from paged_backend.kv.manager import KVCacheManager
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.beam_group import BeamGroup
from paged_backend.scheduler.beam_search import BeamText
from paged_backend.scheduler.policy import order_key, waiting_queue
from paged_backend.scheduler.prompt_scoring import PromptScoring
from paged_backend.scheduler.sequence import Sequence, SequenceStatus, sample_seed

_ORDER = attrgetter("order")


class Roster:
    """Requests and their sequences, from arrival to end, in two lists: those that wait, and those that run.

    A request is one sequence at first; its samples, or beams, are forked from that one and run beside it.

    Attributes:
        waiting: the queue.
        running: sequences that hold blocks, in the policy's order.

    Args:
        kv: the block manager.
        policy: `SchedulerConfig.scheduling_policy`.
        eos_token_ids: the model's end tokens.
        scoring: learns who enters and who ends.
    """

    def __init__(self, kv: KVCacheManager, policy: str, eos_token_ids: Iterable[int], scoring: PromptScoring) -> None:
        self.waiting = waiting_queue(policy)
        self.running: list[Sequence] = []
        self._kv = kv
        self._scoring = scoring
        self._order_key = order_key(policy)
        self._eos_token_ids = tuple(sorted(eos_token_ids))
        self._requests: dict[str, list[Sequence]] = {}
        self._next_seq_id = 0
        self._next_arrival = 0

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    @property
    def num_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._requests)

    def sequences(self, request_id: str) -> tuple[Sequence, ...]:
        """A request's sequences; empty if it has ended."""
        return tuple(self._requests.get(request_id, ()))

    def enter(
        self,
        request_id: str,
        prompt_token_ids: TokenIds[int],
        params: SamplingParams,
        max_tokens: int,
        *,
        seed: int,
        priority: int,
        tenant: str,
        salt: str | None,
        text: BeamText | None,
    ) -> Sequence:
        """Queues a new request's only sequence; see `Scheduler.add`. `max_tokens` is resolved."""
        arrival = self._next_arrival
        self._next_arrival += 1
        token_ids = list(prompt_token_ids)
        sequence = Sequence(
            seq_id=self._new_seq_id(),
            request_id=request_id,
            index=0,
            prompt_token_ids=tuple(prompt_token_ids),
            params=params,
            seeds=() if params.use_beam_search else tuple(sample_seed(seed, i) for i in range(params.num_sequences)),
            tenant=tenant,
            priority=priority,
            arrival=arrival,
            order=self._order_key(priority, arrival, 0),
            max_tokens=max_tokens,
            eos_token_ids=self._eos_token_ids,
            token_ids=token_ids,
            table=self._kv.new_table(token_ids, salt),
        )
        if params.use_beam_search:
            sequence.group = BeamGroup(sequence, text, self._kv, self._fork, self.end)
        self._requests[request_id] = [sequence]
        self._scoring.enter(sequence)
        self.waiting.arrive(sequence, self.running)
        return sequence

    def run(self, sequence: Sequence) -> None:
        """Puts a sequence, taken out of the queue and admitted, among the running ones."""
        insort(self.running, sequence, key=_ORDER)
        self.waiting.start(sequence)

    def part_ways(self, parent: Sequence) -> list[Sequence]:
        """Splits a running request, whose prompt is computed, into its samples."""
        seeds = parent.task.seeds
        prompt = parent.prompt_token_ids
        others = [self._fork(parent, i, list(prompt), seeds[i : i + 1]) for i in range(1, len(seeds))]
        parent.task.seeds = seeds[:1]
        parent.num_samples = 1
        return [parent, *others]

    def take_out(self, sequence: Sequence) -> None:
        """Removes a sequence from the list that it is in; `end` must follow."""
        if sequence.status is SequenceStatus.RUNNING:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)

    def end(self, sequence: Sequence) -> None:
        """Gives the blocks back and forgets the sequence; whoever calls takes it out of its list."""
        sequence.forget_expected()
        if sequence.status is SequenceStatus.RUNNING:
            self.waiting.stop(sequence)
        sequence.status = SequenceStatus.FINISHED
        self._kv.free(sequence.table)
        self._scoring.forget(sequence)
        siblings = self._requests[sequence.request_id]
        siblings.remove(sequence)
        if not siblings:
            del self._requests[sequence.request_id]

    def sweep(self) -> None:
        """Takes all that have ended out of the running ones."""
        self.running = [sequence for sequence in self.running if sequence.status is SequenceStatus.RUNNING]

    def check_invariants(self) -> None:
        """Asserts, between steps, that queue, running list and requests agree. For tests."""
        orders = [sequence.order for sequence in self.running]
        assert orders == sorted(orders)
        for sequence in self.running:
            assert sequence.status is SequenceStatus.RUNNING and sequence.table.active, sequence
        for sequence in self.waiting:
            assert sequence.status is SequenceStatus.WAITING and not sequence.table.active, sequence
        live = {id(sequence) for sequence in (*self.running, *self.waiting)}
        known = [sequence for siblings in self._requests.values() for sequence in siblings]
        assert len(known) == len(live) and {id(sequence) for sequence in known} == live
        assert all(self._requests.values())
        self.waiting.check_invariants(self.running)
        for group in {sequence.group for sequence in known if sequence.group is not None}:
            assert set(group.sequences) == set(self._requests[group.sequences[0].request_id])
            group.check_invariants()

    def _fork(self, parent: Sequence, index: int, token_ids: list[int], seeds: tuple[int, ...] = ()) -> Sequence:
        """A running sequence that shares all of another one's blocks."""
        order = self._order_key(parent.priority, parent.arrival, index)
        table = self._kv.fork(parent.table, token_ids)
        child = parent.sibling(self._new_seq_id(), index, order, seeds, token_ids, table)
        self.run(child)
        self._requests[child.request_id].append(child)
        return child

    def _new_seq_id(self) -> int:
        seq_id = self._next_seq_id
        self._next_seq_id += 1
        return seq_id
