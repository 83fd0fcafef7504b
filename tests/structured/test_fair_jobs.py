"""Turns of tenants: by hand, and against a plain model after random operations."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from paged_backend.sampling_params import StructuredOutputsParams
from paged_backend.structured.fair_jobs import FairJobs, Job
from paged_backend.structured.source import GrammarSource

SOURCE = GrammarSource.of(StructuredOutputsParams(regex="a"))


def job(tenant: str) -> Job:
    return Job(SOURCE, 1, tenant)


def test_tenants_take_turns() -> None:
    jobs = FairJobs(100)
    crowd, first, second = [job("crowd") for _ in range(50)], [job("a"), job("a")], [job("b")]
    for one in (*crowd, *first, *second):
        jobs.put(one)
    taken = [jobs.take(wait=False) for _ in range(7)]
    assert taken == [crowd[0], first[0], second[0], crowd[1], first[1], crowd[2], crowd[3]]


def test_a_tenant_has_so_many_out_at_most() -> None:
    jobs = FairJobs(2)
    crowd, other = [job("crowd") for _ in range(4)], job("other")
    for one in crowd:
        jobs.put(one)
    assert [jobs.take(wait=False) for _ in range(3)] == [*crowd[:2], None]
    jobs.put(other)
    assert jobs.take(wait=False) is other and jobs.take(wait=False) is None
    jobs.done(crowd[0])
    assert jobs.take(wait=False) is crowd[2]


def test_closing_cancels_what_waits_and_what_comes() -> None:
    jobs, early, taken, late = FairJobs(2), job("a"), job("a"), job("a")
    jobs.put(taken)
    assert jobs.take() is taken
    jobs.put(early)
    jobs.close()
    jobs.put(late)
    jobs.put_back(taken)
    assert jobs.take() is None and all(one.matcher.cancelled() for one in (early, late, taken))


class Turns(RuleBasedStateMachine):
    """The model: a list for each tenant, and for each when it was last served."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs = FairJobs(2)
        self.waiting: dict[str, list[Job]] = {tenant: [] for tenant in "abc"}
        self.out: list[Job] = []
        self.num_skipped = dict.fromkeys("abc", 0)

    @rule(tenant=st.sampled_from("abc"))
    def arrive(self, tenant: str) -> None:
        new = job(tenant)
        self.jobs.put(new)
        self.waiting[tenant].append(new)

    @rule(draw=st.data())
    def abandon(self, draw: st.DataObject) -> None:
        known = [one for jobs in self.waiting.values() for one in jobs] + self.out
        if known:
            gone = draw.draw(st.sampled_from(known))
            self.jobs.remove(gone)
            if gone in self.waiting[gone.tenant]:
                self.waiting[gone.tenant].remove(gone)

    @rule()
    def take(self) -> None:
        num_out = {tenant: sum(one.tenant == tenant for one in self.out) for tenant in "abc"}
        may = [tenant for tenant in "abc" if self.waiting[tenant] and num_out[tenant] < 2]
        taken = self.jobs.take(wait=False)
        if taken is None:
            assert not may
            return
        assert taken.tenant in may and taken is self.waiting[taken.tenant].pop(0)
        self.out.append(taken)
        for tenant in "abc":  # nobody who may be served is passed over by more than each other tenant once
            self.num_skipped[tenant] = self.num_skipped[tenant] + 1 if tenant in may and tenant != taken.tenant else 0
            assert self.num_skipped[tenant] <= 2

    @rule(draw=st.data(), again=st.booleans())
    def finish(self, draw: st.DataObject, again: bool) -> None:
        if self.out:
            over = draw.draw(st.sampled_from(self.out))
            self.out.remove(over)
            self.jobs.done(over)
            if again:
                self.jobs.put_back(over)
                self.waiting[over.tenant].insert(0, over)

    @invariant()
    def nothing_is_left_over(self) -> None:
        assert self.jobs._waiting.keys() == {tenant for tenant, jobs in self.waiting.items() if jobs}
        assert self.jobs._num_out.total() == len(self.out) and all(self.jobs._num_out.values())


TestTurns = Turns.TestCase
TestTurns.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
