"""What waits to be compiled, by tenant: tenants take turns."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass, field

from paged_backend.structured.known_grammars import Verdict
from paged_backend.structured.matcher import Matcher
from paged_backend.structured.source import GrammarSource


@dataclass(eq=False, slots=True)
class Job:
    """One request's grammar, to be compiled.

    Attributes:
        num_samples: of the request; each gets a matcher.
        tenant: whose request it is.
        matcher: what the request waits for.
        verdict: on the grammar, if it has been handed one.
    """

    source: GrammarSource
    num_samples: int
    tenant: str
    matcher: Future[Matcher] = field(default_factory=Future)
    verdict: Verdict | None = None


class FairJobs:
    """Jobs that wait. A tenant's are taken in their order, one from each tenant in turn. Safe to use from any thread.

    Args:
        max_per_tenant: jobs of one tenant that may be out, taken and not done, at a time.
    """

    def __init__(self, max_per_tenant: int) -> None:
        self._max_per_tenant = max_per_tenant
        self._changed = threading.Condition()
        self._waiting: OrderedDict[str, OrderedDict[Job, None]] = OrderedDict()
        """By tenant, whose turn is next first. None is empty."""
        self._num_out: Counter[str] = Counter()
        self._num_takers = 0
        self._is_closed = False

    def put(self, job: Job) -> None:
        """A job waits, behind its tenant's others. It is cancelled if `close` was called."""
        self._put(job, last=True)

    def put_back(self, job: Job) -> None:
        """A job that was taken waits again, in front of its tenant's others; else as `put`."""
        self._put(job, last=False)

    def _put(self, job: Job, *, last: bool) -> None:
        with self._changed:
            if self._is_closed:
                job.matcher.cancel()
                return
            jobs = self._waiting.setdefault(job.tenant, OrderedDict())
            jobs[job] = None
            jobs.move_to_end(job, last)
            self._changed.notify()

    @property
    def num_idle(self) -> int:
        """Threads in `take`, less the jobs that wait for one; 0 if those are more."""
        with self._changed:
            return max(0, self._num_takers - sum(map(len, self._waiting.values())))

    def take(self, *, wait: bool = True) -> Job | None:
        """The next job, which is out until `done`; None if none may be taken, or `close` was called.

        Args:
            wait: until one may.
        """
        with self._changed:
            while not self._is_closed:
                tenant = next((name for name in self._waiting if self._num_out[name] < self._max_per_tenant), None)
                if tenant is not None:
                    return self._take_from(tenant)
                if not wait:
                    break
                self._num_takers += 1
                self._changed.wait()
                self._num_takers -= 1
            return None

    def _take_from(self, tenant: str) -> Job:
        jobs = self._waiting[tenant]
        job, _ = jobs.popitem(last=False)
        if jobs:
            self._waiting.move_to_end(tenant)
        else:
            del self._waiting[tenant]
        self._num_out[tenant] += 1
        return job

    def done(self, job: Job) -> None:
        """A job that was taken is not out any more."""
        with self._changed:
            self._num_out[job.tenant] -= 1
            if not self._num_out[job.tenant]:
                del self._num_out[job.tenant]
            self._changed.notify()

    def remove(self, job: Job) -> None:
        """A job does not wait any more; one that does not wait is no error."""
        with self._changed:
            jobs = self._waiting.get(job.tenant, OrderedDict())
            if job in jobs:
                del jobs[job]
                if not jobs:
                    del self._waiting[job.tenant]

    def close(self) -> None:
        """What waits is cancelled, and nothing can be taken any more, by those who wait for it either."""
        with self._changed:
            self._is_closed = True
            for jobs in self._waiting.values():
                for job in jobs:
                    job.matcher.cancel()
            self._waiting.clear()
            self._changed.notify_all()
