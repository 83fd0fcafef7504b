"""Who is served first, who gives way, and the queues that are kept in that order."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator

from paged_backend.scheduler.sequence import Sequence

OrderKey = Callable[[int, int, int], tuple[int, ...]]
"""(priority, arrival, index of the sample) -> sort key; the smallest is served first."""

INPUT_COST = 1
OUTPUT_COST = 2
"""What a token of a prompt that is computed, and one that is drawn, add to their tenant's counter: a drawn one takes
a step's share of its own (the weights of the paper that `FairQueue` follows)."""

_NUM_REMEMBERED = 64
"""Tenants without a live request that are remembered before somebody looks which of them can be forgotten."""


def _fcfs(priority: int, arrival: int, index: int) -> tuple[int, ...]:
    return (arrival, index)


def _priority(priority: int, arrival: int, index: int) -> tuple[int, ...]:
    return (priority, arrival, index)


def order_key(policy: str) -> OrderKey:
    """The sort key of `SchedulerConfig.scheduling_policy`, which has checked the name."""
    return {"fcfs": _fcfs, "fair": _fcfs, "priority": _priority}[policy]


def waiting_queue(policy: str) -> WaitingQueue | FairQueue:
    """The empty queue of `SchedulerConfig.scheduling_policy`."""
    return FairQueue() if policy == "fair" else WaitingQueue()


class WaitingQueue:
    """Sequences without blocks, the first to be served on top: fcfs and priority, whose orders never change.

    A preempted sequence needs no special place: it was admitted before all that still wait behind it, so its
    key puts it in front of them. Push, pop and remove are O(log n) or better; a removed one leaves its heap
    entry behind until that comes to the top, or until such entries are the majority.

    Attributes:
        num_tokens: known tokens of its members.
    """

    __slots__ = ("_heap", "_members", "num_tokens")

    def __init__(self) -> None:
        self.num_tokens = 0
        self._heap: list[tuple[tuple[int, ...], int, Sequence]] = []
        self._members: dict[int, Sequence] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence.seq_id in self._members

    def __iter__(self) -> Iterator[Sequence]:
        """All members, in no order."""
        return iter(self._members.values())

    def arrive(self, sequence: Sequence, running: Iterable[Sequence]) -> None:
        """Adds a new request's sequence, beside all those that run now."""
        self.push(sequence)

    def push(self, sequence: Sequence) -> None:
        """Adds a sequence at the place that its `order` gives."""
        assert sequence.seq_id not in self._members, sequence
        self._members[sequence.seq_id] = sequence
        self.num_tokens += len(sequence.token_ids)
        heapq.heappush(self._heap, (sequence.order, sequence.seq_id, sequence))

    def peek(self) -> Sequence:
        """The first sequence, which stays."""
        assert self._members, "peek on an empty queue"
        while self._heap[0][1] not in self._members:
            heapq.heappop(self._heap)
        return self._heap[0][2]

    def pop(self) -> Sequence:
        """Takes the first sequence."""
        sequence = self.peek()
        heapq.heappop(self._heap)
        del self._members[sequence.seq_id]
        self.num_tokens -= len(sequence.token_ids)
        return sequence

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is."""
        del self._members[sequence.seq_id]
        self.num_tokens -= len(sequence.token_ids)
        if len(self._heap) > 2 * len(self._members) + 16:
            self._heap = [entry for entry in self._heap if entry[1] in self._members]
            heapq.heapify(self._heap)

    def last(self, running: list[Sequence]) -> Sequence:
        """The one that gives way where blocks run out; `running` is in order and not empty."""
        return running[-1]

    def book_prompt(self, sequence: Sequence) -> None:
        """Told when a sequence is admitted for the first time: nothing here depends on what was served."""

    def book_outputs(self, sequences: Iterable[Sequence]) -> None:
        """Told of sequences that may have drawn tokens: nothing here depends on what was served."""


class _Tenant:
    """What a tenant was served, in the costs above, and what of its waits."""

    __slots__ = ("counter", "name", "queue")

    def __init__(self, name: str, counter: int) -> None:
        self.name = name
        self.counter = counter
        self.queue = WaitingQueue()


class FairQueue:
    """Sequences without blocks, the first of the tenant that was served least on top.

    The virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024): each tenant
    has a counter of the tokens that it was served, the lowest one's oldest request is admitted next, and a tenant
    that comes to the queue with nothing else in it is lifted to the lowest counter there (or, in an empty queue, to
    the counter of whoever left it last), so that nobody saves up while away. Between two tenants that both keep
    requests waiting, the service differs by no more than what the running sequences of one can take.

    Here also: a prompt costs only what is computed of it, once, however often it is preempted; and where blocks run
    out, the youngest sequence of the tenant that was served most gives way. Tokens that were drawn are never drawn
    again, so every step that draws brings some request nearer to its end, and the others compute the one prompt that
    is still in chunks: no order of giving way can go on for ever.

    Counters are brought up to date only where somebody looks at them; a step that admits and preempts nothing costs
    nothing.

    Attributes:
        num_tokens: known tokens of its members.
    """

    __slots__ = ("_last_to_leave", "_num_members", "_tenants", "_waiting", "num_tokens")

    def __init__(self) -> None:
        self.num_tokens = 0
        self._num_members = 0
        self._tenants: dict[str, _Tenant] = {}
        self._waiting: dict[str, _Tenant] = {}  # those of them whose queues are not empty
        self._last_to_leave: _Tenant | None = None

    def __len__(self) -> int:
        return self._num_members

    def __contains__(self, sequence: Sequence) -> bool:
        tenant = self._waiting.get(sequence.tenant)
        return tenant is not None and sequence in tenant.queue

    def __iter__(self) -> Iterator[Sequence]:
        """All members, in no order."""
        for tenant in self._waiting.values():
            yield from tenant.queue

    def counters(self) -> dict[str, int]:
        """What each tenant was served that has something in the queue, as of the last booking."""
        return {name: tenant.counter for name, tenant in self._waiting.items()}

    def arrive(self, sequence: Sequence, running: list[Sequence]) -> None:
        """Adds a new request's sequence, beside all those that run now."""
        self.book_outputs(running)
        if len(self._tenants) > 2 * len(self._waiting) + _NUM_REMEMBERED:
            self._forget_idle(running)
        self.push(sequence)

    def push(self, sequence: Sequence) -> None:
        """Adds a sequence behind those of its tenant that came before it."""
        tenant = self._tenant(sequence)
        if not len(tenant.queue):
            tenant.counter = max(tenant.counter, self._lift())
            self._waiting[tenant.name] = tenant
        tenant.queue.push(sequence)
        self._num_members += 1
        self.num_tokens += len(sequence.token_ids)

    def peek(self) -> Sequence:
        """The first sequence, which stays."""
        first = min(self._waiting.values(), key=lambda tenant: (tenant.counter, tenant.queue.peek().order))
        return first.queue.peek()

    def pop(self) -> Sequence:
        """Takes the first sequence."""
        sequence = self.peek()
        self.remove(sequence)
        return sequence

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is."""
        tenant = self._waiting[sequence.tenant]
        tenant.queue.remove(sequence)
        self._num_members -= 1
        self.num_tokens -= len(sequence.token_ids)
        if not len(tenant.queue):
            del self._waiting[tenant.name]
            self._last_to_leave = tenant

    def last(self, running: list[Sequence]) -> Sequence:
        """The one that gives way where blocks run out; `running` is not empty."""
        self.book_outputs(running)
        return max(running, key=lambda sequence: (self._tenant(sequence).counter, sequence.order))

    def book_prompt(self, sequence: Sequence) -> None:
        """Charges what is computed of a prompt, when its sequence is admitted for the first time."""
        num_computed = len(sequence.prompt_token_ids) - sequence.num_cached_tokens
        self._tenant(sequence).counter += INPUT_COST * num_computed

    def book_outputs(self, sequences: Iterable[Sequence]) -> None:
        """Charges what sequences have drawn since they were last looked at."""
        for sequence in sequences:
            num_new = len(sequence.token_ids) - sequence.num_booked_tokens
            if num_new:
                self._tenant(sequence).counter += OUTPUT_COST * num_new
                sequence.num_booked_tokens += num_new

    def _tenant(self, sequence: Sequence) -> _Tenant:
        tenant = self._tenants.get(sequence.tenant)
        if tenant is None:
            tenant = self._tenants[sequence.tenant] = _Tenant(sequence.tenant, 0)
        return tenant

    def _lift(self) -> int:
        """The least counter that a tenant may come to the queue with."""
        if self._waiting:
            return min(tenant.counter for tenant in self._waiting.values())
        return self._last_to_leave.counter if self._last_to_leave is not None else 0

    def _forget_idle(self, running: Iterable[Sequence]) -> None:
        """Drops tenants without requests whose counters say no more than that they would be lifted."""
        lift = self._lift()
        live = {sequence.tenant for sequence in running} | self._waiting.keys()
        self._tenants = {
            name: tenant for name, tenant in self._tenants.items() if name in live or tenant.counter > lift
        }
