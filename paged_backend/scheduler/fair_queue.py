"""Sequences that wait, in an order that follows what their tenants were served."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator

from paged_backend.scheduler.sequence import Sequence
from paged_backend.scheduler.waiting_queue import WaitingQueue

INPUT_COST = 1
OUTPUT_COST = 2
"""What a token of a prompt that is computed, and one that is drawn, add to their tenant's counter: a drawn one takes
a step's share of its own (the weights of the paper that `FairQueue` follows)."""

_NUM_REMEMBERED = 64
"""Tenants without a live request that are remembered before somebody looks which of them can be forgotten."""

_Key = tuple[int, tuple[int, ...], str]
"""A tenant's counter, the order of its first waiting sequence, its name."""


class _Tenant:
    """What a tenant was served, and what of its waits.

    Attributes:
        booked: what it was served, but for the tokens of its sequences that draw one in each step.
        num_drawing: how many those are.
        sum_since: the sum of the steps since which they do.
        num_running: its running sequences, those among them.
        num_new: its waiting sequences that never ran. With any it is backlogged.
        queue: all of its waiting sequences.
        key: its entry in the heap; None while nothing waits.
    """

    __slots__ = ("booked", "key", "name", "num_drawing", "num_new", "num_running", "queue", "sum_since")

    def __init__(self, name: str) -> None:
        self.name = name
        self.booked = self.num_drawing = self.sum_since = self.num_running = self.num_new = 0
        self.queue = WaitingQueue()
        self.key: _Key | None = None

    def counter(self, step: int) -> int:
        """What it was served before this step."""
        return self.booked + OUTPUT_COST * (self.num_drawing * step - self.sum_since)


class FairQueue:
    """Sequences without blocks, the first of the tenant that was served least on top.

    The virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024): each tenant
    has a counter of the tokens that it was served, and the lowest one's oldest request is admitted next. A tenant is
    backlogged while requests of its wait that never ran; one that becomes so is lifted to the lowest counter of those
    that are (or, if there are none, to the counter of whoever was last), so that nobody saves up while asking for less
    than its share. Between two tenants that both keep requests waiting, the service differs by no more than what
    the running sequences of one can take.

    Here also: a prompt costs only what is computed of it, once, however often it is preempted; and where blocks run
    out, the youngest sequence of the tenant that was served most gives way. That lifts nobody: who was preempted did
    not become backlogged, and comes back with the counter that it has. Tokens that were drawn are never drawn again, so
    every step that draws brings some request nearer to its end, and the others compute the one prompt that is still
    in chunks: no order of giving way can go on for ever.

    A step costs what changes in it. Of a sequence that draws a token a step only the beginning (`follow`) and the end
    (`stop`) are booked, between them it counts by itself; and the heap of tenants holds lower bounds, brought up to
    date on top only, as counters never fall.

    Attributes:
        num_tokens: known tokens of its members.
    """

    __slots__ = ("_heap", "_last_backlogged", "_num_members", "_step", "_tenants", "_waiting", "num_tokens")

    def __init__(self) -> None:
        self.num_tokens = 0
        self._num_members = 0
        self._step = 0
        self._tenants: dict[str, _Tenant] = {}
        self._waiting: dict[str, _Tenant] = {}  # those of them whose queues are not empty
        self._heap: list[_Key] = []
        self._last_backlogged: _Tenant | None = None

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
        """What each tenant was served that has something in the queue."""
        return {name: tenant.counter(self._step) for name, tenant in self._waiting.items()}

    # The queue

    def arrive(self, sequence: Sequence, running: list[Sequence]) -> None:
        """Adds a new request's sequence, beside all those that run now."""
        self.follow([other for other in running if not other.quiet_below])
        if len(self._tenants) > 2 * len(self._waiting) + _NUM_REMEMBERED:
            self._forget_idle()
        tenant = self._tenant(sequence)
        if not tenant.num_new:
            tenant.booked += max(self._lift() - tenant.counter(self._step), 0)
        tenant.num_new += 1
        self.push(sequence)

    def push(self, sequence: Sequence) -> None:
        """Adds a sequence, a preempted one as a rule, behind those of its tenant that came before it."""
        tenant = self._tenant(sequence)
        tenant.queue.push(sequence)
        self._waiting[tenant.name] = tenant
        self._num_members += 1
        self.num_tokens += len(sequence.token_ids)
        key = self._key(tenant)
        if tenant.key is None or key < tenant.key:
            tenant.key = key
            heapq.heappush(self._heap, key)
            if len(self._heap) > 2 * len(self._waiting) + _NUM_REMEMBERED:
                self._heap = [other.key for other in self._waiting.values() if other.key is not None]
                heapq.heapify(self._heap)

    def peek(self) -> Sequence:
        """The first sequence, which stays."""
        heap = self._heap
        while True:
            entry = heap[0]
            tenant = self._waiting.get(entry[-1])
            if tenant is None or tenant.key != entry:
                heapq.heappop(heap)  # left behind
                continue
            key = self._key(tenant)
            if key == entry:
                return tenant.queue.peek()
            tenant.key = key
            heapq.heapreplace(heap, key)

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
        if not sequence.num_preemptions:
            tenant.num_new -= 1
            if not tenant.num_new:
                self._last_backlogged = tenant
        if not len(tenant.queue):
            tenant.key = None
            del self._waiting[tenant.name]

    def last(self, running: list[Sequence]) -> Sequence:
        """The one that gives way where blocks run out; `running` is not empty, and `follow` knows of it."""
        step = self._step
        return max(running, key=lambda sequence: (self._tenants[sequence.tenant].counter(step), sequence.order))

    # The books

    def book_prompt(self, sequence: Sequence) -> None:
        """Charges what is computed of a prompt, when its sequence is admitted for the first time."""
        num_computed = len(sequence.prompt_token_ids) - sequence.num_cached_tokens
        self._tenant(sequence).booked += INPUT_COST * num_computed

    def start(self, sequence: Sequence) -> None:
        """A sequence begins to run, admitted or forked."""
        self._tenant(sequence).num_running += 1

    def follow(self, sequences: Iterable[Sequence]) -> None:
        """Told before each step, and by `arrive`, of all running sequences but those that are quiet: charges what they
        have drawn, and learns which draw a token a step from now on. Quiet ones do, and it was told of them before."""
        for sequence in sequences:
            if sequence.drawing_since is not None:
                continue
            tenant = self._book(sequence)
            num_missing = len(sequence.token_ids) - sequence.num_computed_tokens
            if num_missing == 1 == sequence.num_samples and sequence.group is None:
                sequence.drawing_since = self._step
                tenant.num_drawing += 1
                tenant.sum_since += self._step

    def end_step(self) -> None:
        """A step was computed: who draws a token a step has drawn one."""
        self._step += 1

    def stop(self, sequence: Sequence) -> None:
        """A sequence runs no more, ended or preempted: charges what it has drawn."""
        tenant = self._book(sequence)
        tenant.num_running -= 1
        if sequence.drawing_since is not None:
            tenant.num_drawing -= 1
            tenant.sum_since -= sequence.drawing_since
            sequence.drawing_since = None

    def check_invariants(self, running: Iterable[Sequence]) -> None:
        """Asserts that counters agree with the sequences that they count. For tests."""
        assert self.num_tokens == sum(len(sequence.token_ids) for sequence in self)
        num_new = Counter(sequence.tenant for sequence in self if not sequence.num_preemptions)
        num_running, drawn = Counter[str](), Counter[str]()
        for sequence in running:
            num_running[sequence.tenant] += 1
            if sequence.drawing_since is None:
                assert not sequence.quiet_below, sequence
            else:
                drawn[sequence.tenant] += len(sequence.token_ids) - sequence.num_booked_tokens
        for name, tenant in self._tenants.items():
            assert (tenant.num_new, tenant.num_running) == (num_new[name], num_running[name]), name
            assert tenant.counter(self._step) == tenant.booked + OUTPUT_COST * drawn[name], name
            assert tenant.key is None or tenant.key <= self._key(tenant)
        assert num_running.keys() | self._waiting.keys() <= self._tenants.keys()
        if self._waiting:
            assert self.peek() is min(self._waiting.values(), key=self._key).queue.peek()

    def _tenant(self, sequence: Sequence) -> _Tenant:
        tenant = self._tenants.get(sequence.tenant)
        if tenant is None:
            tenant = self._tenants[sequence.tenant] = _Tenant(sequence.tenant)
        return tenant

    def _book(self, sequence: Sequence) -> _Tenant:
        tenant = self._tenant(sequence)
        num_known = len(sequence.token_ids)
        tenant.booked += OUTPUT_COST * (num_known - sequence.num_booked_tokens)
        sequence.num_booked_tokens = num_known
        return tenant

    def _key(self, tenant: _Tenant) -> _Key:
        return tenant.counter(self._step), tenant.queue.peek().order, tenant.name

    def _lift(self) -> int:
        """The least counter that a tenant may become backlogged with."""
        counters = [tenant.counter(self._step) for tenant in self._waiting.values() if tenant.num_new]
        if counters:
            return min(counters)
        return self._last_backlogged.counter(self._step) if self._last_backlogged is not None else 0

    def _forget_idle(self) -> None:
        """Drops tenants without requests whose counters say no more than that they would be lifted."""
        lift, waiting, step = self._lift(), self._waiting, self._step
        self._tenants = {
            name: tenant
            for name, tenant in self._tenants.items()
            if name in waiting or tenant.num_running or tenant.counter(step) > lift
        }
